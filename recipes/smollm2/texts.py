"""Downloads the texts of recipes/smollm2.yaml and recipes/five-domains-*.yaml, about 40 MB.

`python recipes/smollm2/texts.py FOLDER`. Files that the folder already has are left as they are. Knows nothing about
models.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.request import urlopen

GITHUB = "https://raw.githubusercontent.com"
GSM8K = f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data"
MBPP = f"{GITHUB}/google-research/google-research/master/mbpp/mbpp.jsonl"
SGD = f"{GITHUB}/google-research-datasets/dstc8-schema-guided-dialogue/master"
QUESTIONS = f"{GITHUB}/jonny-vr/LLMCBench/720be179c2492271f61d7a09291ffd003f36f47d/data"
TRUTHFULQA = f"{QUESTIONS}/TruthfulQA/TruthfulQA.csv"
CODE = f"{GITHUB}/teknium1/GPTeacher/481075123c29854bddb82655badeef6a438f2436/Codegen/codegen-instruct.json"
DOLLY = "https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"
SHAKESPEARE = f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
"""
"""Those of MMLU."""
OF_A_SUBJECT = 44

Row = dict[str, Any]


def gsm8k(text: str) -> Iterator[Row]:
    """Questions and worked answers, without the calculator's marks (MIT)."""
    for row in rows_of(text):
        steps = row["answer"].split("<<")
        answer = steps[0] + "".join(step.split(">>", 1)[1] for step in steps[1:])
        yield {"prompt": row["question"], "response": answer}


def mbpp(text: str, first: int, last: int) -> Iterator[Row]:
    """Tasks and programs with these numbers (CC BY 4.0)."""
    for row in rows_of(text):
        if first <= row["task_id"] <= last:
            yield {"prompt": row["text"], "response": row["code"].replace("\r\n", "\n")}


def sgd(text: str) -> Iterator[Row]:
    """Conversations of a user with a service (CC BY-SA 4.0)."""
    roles = {"USER": "user", "SYSTEM": "assistant"}
    for dialogue in json.loads(text):
        yield {"messages": [{"role": roles[t["speaker"]], "content": t["utterance"]} for t in dialogue["turns"]]}


def dolly(text: str) -> Iterator[Row]:
    """Questions that need no text beside them, and their answers (CC BY-SA 3.0)."""
    for row in list(rows_of(text))[:400]:
        if not row["context"]:
            yield {"prompt": row["instruction"], "response": row["response"]}


def shakespeare(text: str) -> Iterator[Row]:
    """The last tenth of some plays, in pieces of about a thousand characters (public domain)."""
    speeches, piece = text[len(text) * 9 // 10 :].split("\n\n")[1:], ""
    for speech in speeches:
        piece += speech + "\n\n"
        if len(piece) > 1000:
            yield {"text": piece.strip()}
            piece = ""


def choices(text: str) -> Iterator[Row]:
    """Questions with four answers of ARC (CC BY-SA 4.0) or MMLU (MIT), from lines of question, answers and letter."""
    for question, *answers, right in csv.reader(io.StringIO(text)):
        if right in "ABCD" and len(answers) == 4 and all(answers):
            listed = [f"{letter}. {answer}" for letter, answer in zip("ABCD", answers, strict=True)]
            yield {"prompt": "\n".join([question, *listed, "Answer:"]), "response": listed["ABCD".index(right)]}


def mmlu(text: str, split: str) -> Iterator[Row]:
    """The part of the first questions of a subject that belongs to a split."""
    return part(list(choices(text))[:OF_A_SUBJECT], split)


def truthfulqa(text: str, split: str) -> Iterator[Row]:
    """Questions with the best answer and all right and wrong ones (Apache 2.0)."""
    rows = (
        {
            "prompt": row["Question"],
            "response": row["Best Answer"],
            "correct_answers": [one.strip() for one in row["Correct Answers"].split(";") if one.strip()],
            "incorrect_answers": [one.strip() for one in row["Incorrect Answers"].split(";") if one.strip()],
        }
        for row in csv.DictReader(io.StringIO(text))
    )
    return part(rows, split)


def code_instruct(text: str, split: str) -> Iterator[Row]:
    """Instructions to write programs, and the programs (MIT; written by a model)."""
    rows = json.loads(text)
    asked = ({"prompt": f"{r['instruction']}\n\n{r['input']}".strip(), "response": r["response"]} for r in rows)
    return part(asked, split)


def part(rows: Iterable[Row], split: str) -> Iterator[Row]:
    """The rows of a split, by the hash of their prompt: a quarter of all rows is for tests."""
    for row in rows:
        if (sha256(row["prompt"].encode()).digest()[0] < 64) == (split == "test"):
            yield row


Convert = Callable[[str], Iterable[Row]]


def cut(address: str, name: str, convert: Callable[[str, str], Iterable[Row]]) -> dict[str, tuple[list[str], Convert]]:
    """Files of both splits from one address."""
    return {f"{name}/{split}.jsonl": ([address], partial(convert, split=split)) for split in ("train", "test")}


FILES: dict[str, tuple[list[str], Convert]] = {
    "gsm8k/train.jsonl": ([f"{GSM8K}/train.jsonl"], gsm8k),
    "gsm8k/test.jsonl": ([f"{GSM8K}/test.jsonl"], gsm8k),
    "mbpp/train.jsonl": ([MBPP], lambda text: mbpp(text, 601, 974)),
    "mbpp/test.jsonl": ([MBPP], lambda text: mbpp(text, 11, 510)),
    "sgd_dialogues/train.jsonl": ([f"{SGD}/train/dialogues_001.json"], sgd),
    "sgd_dialogues/test.jsonl": ([f"{SGD}/test/dialogues_001.json"], sgd),
    # Its `dev` files hold the official training questions, its `test` files the official validation questions.
    "arc/train.jsonl": (
        [f"{QUESTIONS}/ARC-E/dev/arc_easy_dev.csv", f"{QUESTIONS}/ARC-C/dev/arc_challenge_dev.csv"],
        choices,
    ),
    "arc/test.jsonl": (
        [f"{QUESTIONS}/ARC-E/test/arc_easy_test.csv", f"{QUESTIONS}/ARC-C/test/arc_challenge_test.csv"],
        choices,
    ),
    **{
        f"mmlu/{split}.jsonl": (
            [f"{QUESTIONS}/MMLU/test/{one}_test.csv" for one in SUBJECTS.split()],
            partial(mmlu, split=split),
        )
        for split in ("train", "test")
    },
    **cut(TRUTHFULQA, "truthfulqa", truthfulqa),
    **cut(CODE, "code_instruct", code_instruct),
    "dolly_subset/test.jsonl": ([DOLLY], dolly),
    "tinyshakespeare/test.jsonl": ([SHAKESPEARE], shakespeare),
}
"""File -> where its texts come from, and the function that turns those of one address into rows."""


def rows_of(text: str) -> Iterator[Row]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def main(folder: Path) -> None:
    for name, (addresses, convert) in FILES.items():
        file = folder / name
        if file.is_file():
            continue
        rows: list[str] = []
        for address in addresses:
            print(f"downloading {address}", flush=True)
            with urlopen(address, timeout=60) as answer:
                rows += [json.dumps(row, ensure_ascii=False) for row in convert(answer.read().decode())]
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text("\n".join(rows) + "\n", encoding="utf-8")
        part.rename(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
