"""Is a tokenizer that lies beside an adapter told, and one by which it learned other texts refused?"""

import json

import pytest

from moesaic.artefacts.tokenizer_check import spoken_otherwise, tokenizer_beside
from moesaic.errors import CompatibilityError
from moesaic.tokenizer import Special, Template, Tokenizer

USED = "the tokenizer beside it differs from the base's, which is used: "


@pytest.fixture
def beside(tokenizer, tmp_path):
    """The folder of an adapter with the base's own tokenizer beside it."""
    tokenizer.save(tmp_path)
    return tmp_path


def test_the_bases_own_tokenizer_and_none_are_nothing_to_tell(beside, tokenizer, tmp_path):
    assert tokenizer_beside(beside, tokenizer) == []
    (beside / "tokenizer.json").unlink()
    (beside / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    assert tokenizer_beside(beside, tokenizer) == []


def test_a_token_that_a_trainer_has_added_is_told(beside, tokenizer):
    own = Tokenizer.load(beside, tokenizer.eos)
    own.inner.add_special_tokens(["<pad>"])
    own.save(beside)
    (told,) = tokenizer_beside(beside, tokenizer)
    assert told.startswith(f"{USED}tokens: 1 (265: (none) / <pad>); added tokens: 1 (265: (none) / ")


def test_ids_that_mean_other_tokens_are_refused_with_the_first_of_them(beside, tokenizer):
    found = json.loads((beside / "tokenizer.json").read_text())
    vocabulary = found["model"]["vocab"]
    found["model"]["vocab"] = {text: id if id == 0 else len(vocabulary) - id for text, id in vocabulary.items()}
    (beside / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(CompatibilityError, match=r"gives ids to other tokens: tokens: 264 \(1: ! / ") as refused:
        tokenizer_beside(beside, tokenizer)
    assert refused.value.path == beside


def test_what_conversations_and_ends_are_written_with_is_told_where_the_base_has_another(tokenizer):
    def tuned(eos: int = 0, source: str | None = None) -> Tokenizer:
        return Tokenizer(tokenizer.inner, Special(eos), source and Template(source))

    talks = tuned(source="{{ messages }}")
    assert (
        spoken_otherwise(tokenizer, tuned()) == spoken_otherwise(talks, tuned()) == spoken_otherwise(talks, talks) == []
    )
    assert spoken_otherwise(tokenizer, talks) == ["its chat template differs from the base's, which is used"]
    assert len(spoken_otherwise(talks, tuned(source="{{ messages[0] }}"))) == 1
    assert spoken_otherwise(tokenizer, tuned(eos=5)) == ["it ends texts with %, which does not end a text of the base"]
    assert spoken_otherwise(Tokenizer(tokenizer.inner, Special(0, (0, 5))), tuned(eos=5)) == []
