"""Journey: traffic is recorded, corrected by hand, replayed with another router, and shown on the page of the run."""

import json
import re

import moesaic

KEYWORDS = "runs/small/controls/routers/keyword-text"


def test_traffic_is_recorded_replayed_and_reported(here, command, apart, prompts, tmp_path):
    path = tmp_path / "traffic.jsonl"
    asked = [some[0] for some in prompts.values()]
    code, out, err = apart(
        *(here, "generate", "runs/small", *asked, "--max-new-tokens", 2, "--json"),
        *("--trace", path, "--trace-texts"),
    )
    assert code == 0, err
    chosen = [json.loads(line)["chosen"] for line in out.splitlines()]
    with moesaic.load("runs/small", trace=path, trace_texts=True) as mixture:
        more = [some[1] for some in prompts.values()]
        chosen += [one.routing.chosen for one in mixture.generate(more, max_new_tokens=2)]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["prompt"], row["chosen"]) for row in rows] == list(zip([*asked, *more], chosen, strict=True))

    for row in rows:
        row["correction"] = row["chosen"]
    rows[0]["correction"] = next(name for name in prompts if name != rows[0]["chosen"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(command("inspect", path, "--json").out)
    assert (told["kind"], told["rows"], told["corrected"]) == ("trace", 6, 6) and told["accuracy"] == 5 / 6

    same = json.loads(command("replay", path, "--router", "runs/small", "--json").out)
    other = json.loads(command("replay", path, "--router", KEYWORDS, "--json").out)
    assert same["rows"] == other["rows"] == 6 and same["agreement"] == 1.0

    pages = []
    for more in (("--trace", path), ()):
        code, _, err = command("report", "runs/small", *more, "--to", tmp_path / f"{len(pages)}.html")
        assert code == 0, err
        pages.append(re.sub("<[^>]+>", "", (tmp_path / f"{len(pages)}.html").read_text()))
    assert "6 decisions" in pages[0] and "83.3% of these decisions were right" in pages[0]
    assert "6 decisions" not in pages[1]
