"""Are a model's nats on any file those of its own logits, and a mixture's compared with its base's?"""

import json
import math

import pytest
import torch

import moesaic
from moesaic.errors import DataError, MoesaicWarning, RecipeError
from moesaic.evaluate.unseen import judge_unseen

ROWS = [{"prompt": f"Say {word}.", "response": f"{word} {word}"} for word in ("owl", "wren", "lark", "heron")]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_nats_are_those_of_the_models_own_logits(rows):
    found = judge_unseen("shipped:tiny", [rows])["files"][str(rows)]
    model = moesaic.load_model("shipped:tiny", torch.float32)
    nats = tokens = 0
    for row in ROWS:
        prompt = model.tokenizer.begin(row["prompt"])
        ids = [*prompt, *model.tokenizer.answer(row["prompt"], row["response"])]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(logits[at - 1, ids[at]].item() for at in range(len(prompt), len(ids)))
        tokens += len(ids) - len(prompt)
    assert found["tokens"] == tokens and found["rows"] == len(ROWS) and "base_nats" not in found
    assert math.isclose(found["nats"], nats / tokens, rel_tol=1e-4) and found["chosen"] == {"base": 1.0}
    assert judge_unseen("shipped:tiny", [rows], limit=2)["files"][str(rows)]["rows"] == 2


def test_files_without_rows_and_no_file_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="unseen: no files"):
        judge_unseen("shipped:tiny", [])
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="none.jsonl"):
        judge_unseen("shipped:tiny", [tmp_path / "none.jsonl"])


def test_rows_that_spell_special_tokens_are_a_warning_with_their_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Once upon a time <|end|> there was an owl."}) + "\n")
    with pytest.warns(MoesaicWarning, match=r"rows\.jsonl: 1 of 1 rows spell special tokens, such as <\|end\|>"):
        judge_unseen("shipped:tiny", [path])
