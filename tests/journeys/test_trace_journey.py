"""Traffic is recorded, corrected by hand, replayed with another router, and shown on the page of the run."""

import json

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

    for row, correction in zip(rows, [*prompts, *prompts], strict=True):
        row["correction"] = correction
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = sum(row["chosen"] == row["correction"] for row in rows)
    told = json.loads(command("inspect", path, "--json").out)
    assert (told["kind"], told["rows"], told["corrected"]) == ("trace", 6, 6) and told["accuracy"] == right / 6

    same = json.loads(command("replay", path, "--router", "runs/small", "--json").out)
    other = json.loads(command("replay", path, "--router", KEYWORDS, "--json").out)
    assert same["rows"] == other["rows"] == 6 and same["agreement"] == 1.0
    print(same, other)

    code, _, err = command("report", "runs/small", "--trace", path, "--to", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert command("report", "runs/small", "--to", tmp_path / "plain.html").code == 0
    assert "traffic.jsonl" in page and "traffic.jsonl" not in (tmp_path / "plain.html").read_text()
