"""`moesaic plan` on the command line: what it prints, and how it ends."""

import json

import pytest

FOUR = ("llama-3.2-1b",) * 4


def test_a_published_size_is_a_table(moesaic):
    code, out, err = moesaic("plan", "llama-3-70b")
    assert code == 0 and not err
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert rows["loaded"].split() == ["loaded", "70,553,706,496", "141.1", "GB"]
    assert "loaded in    float32 282.2 GB, bfloat16 141.1 GB" in out and "Placement" not in out


def test_four_models_go_onto_two_devices(moesaic):
    code, out, _ = moesaic("plan", *FOUR, "--site", "model", "--vram", "17GB", "--ram", "32GB", "--devices", 2)
    assert code == 0 and "device 1: " in out and " of 8.5 GB: " in out
    assert "llama-3.2-1b-4 2.5 GB" in out and "fetched for a request" not in out
    assert "site         model, 1 of 4 experts for a row" in out


def test_several_hosts_share_the_experts(moesaic):
    code, out, _ = moesaic("plan", *FOUR, "--site", "model", "--vram", "8GB", "--ram", "8GB", "--hosts", 2)
    assert code == 0 and "fetched for a request" not in out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("host ")] == [
        "host 0, device 0",
        "host 0, RAM",
        "host 1, device 0",
        "host 1, RAM",
    ]
    code, out, err = moesaic("plan", *FOUR, "--site", "ffn", "--vram", "2GB", "--hosts", 2)
    assert code == 8 and err.startswith("error: host 0, device 0: the plan does not fit: ")


def test_json_has_all_of_it(moesaic):
    code, out, _ = moesaic("plan", *FOUR, "--site", "ffn", "--vram", "6GB", "--bandwidth", "10GB,1GB", "--json")
    told = json.loads(out)
    assert code == 0 and told["site"] == "ffn" and told["fits"] is True
    assert told["placement"]["fetched"] > 0
    assert told["placement"]["seconds"] == pytest.approx(told["placement"]["fetched"] / 1e9)


def test_what_does_not_fit_ends_in_8_after_the_table(moesaic):
    code, out, err = moesaic("plan", "llama-3-70b", "--vram", "17GB")
    assert code == 8 and out.startswith("part ") and err.startswith("error: device 0: the plan does not fit: ")


def test_what_cannot_be_composed_ends_in_5_with_every_difference(moesaic):
    code, out, err = moesaic("plan", "llama-3-8b", "mistral-7b", "--site", "linear")
    assert code == 5 and "\nApart\nmistral-7b: context: 32768, and the base 8192\n" in out
    assert "mistral-7b: context: these models cannot be composed (" in err
    told = json.loads(moesaic("plan", "llama-3-8b", "mistral-7b", "--site", "linear", "--json")[1])
    assert not told["compatible"] and {one["field"] for one in told["differences"]} > {"vocab_size", "window"}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--vram", "much"), "vram: wrong size of memory"),
        (("--bandwidth", "12GB"), "bandwidth: not two rates"),
        (("--site", "head"), "site: unknown; expected linear or ffn or model"),
        (("--batch", 0), "batch: wrong number"),
        (("--hosts", 0), "hosts: wrong number"),
    ],
)
def test_what_is_mistyped_ends_in_2(moesaic, arguments, what):
    code, out, err = moesaic("plan", "llama-3-8b", *arguments)
    assert code == 2 and not out and what in err


def test_training_is_said_to_be_training(moesaic):
    out = moesaic("plan", "gemma-3-270m", "--training", "--dtype", "float32", "--context", 512)[1]
    assert "AdamW and the best values" in out and "training" in out and "computed in  float32" in out
