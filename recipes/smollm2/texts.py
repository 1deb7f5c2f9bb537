"""Downloads the texts of recipes/smollm2.yaml: `python recipes/smollm2/texts.py FOLDER`, about 30 MB.

Files that the folder already has are left as they are. Knows nothing about models.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

GITHUB = "https://raw.githubusercontent.com"
GSM8K = f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data"
MBPP = f"{GITHUB}/google-research/google-research/master/mbpp/mbpp.jsonl"
SGD = f"{GITHUB}/google-research-datasets/dstc8-schema-guided-dialogue/master"
DOLLY = "https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"
SHAKESPEARE = f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

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


FILES: dict[str, tuple[str, Callable[[str], Iterable[Row]]]] = {
    "gsm8k/train.jsonl": (f"{GSM8K}/train.jsonl", gsm8k),
    "gsm8k/test.jsonl": (f"{GSM8K}/test.jsonl", gsm8k),
    "mbpp/train.jsonl": (MBPP, lambda text: mbpp(text, 601, 974)),
    "mbpp/test.jsonl": (MBPP, lambda text: mbpp(text, 11, 510)),
    "sgd_dialogues/train.jsonl": (f"{SGD}/train/dialogues_001.json", sgd),
    "sgd_dialogues/test.jsonl": (f"{SGD}/test/dialogues_001.json", sgd),
    "dolly_subset/test.jsonl": (DOLLY, dolly),
    "tinyshakespeare/test.jsonl": (SHAKESPEARE, shakespeare),
}
"""File -> where its texts come from, and the function that turns them into rows."""


def rows_of(text: str) -> Iterator[Row]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def main(folder: Path) -> None:
    for name, (address, convert) in FILES.items():
        file = folder / name
        if file.is_file():
            continue
        print(f"downloading {address}", flush=True)
        with urlopen(address, timeout=60) as answer:
            rows = [json.dumps(row, ensure_ascii=False) for row in convert(answer.read().decode())]
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text("\n".join(rows) + "\n", encoding="utf-8")
        part.rename(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
