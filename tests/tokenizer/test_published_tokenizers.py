"""Property: real tokenizers give their own ids in every published form; every other file is told apart."""

import json
import shutil
from pathlib import Path

import pytest

from moesaic.errors import WeightsError
from moesaic.tokenizer import Special, Tokenizer
from moesaic.tokenizer import published as reading
from moesaic.tokenizer.published import read_inner
from moesaic.tokenizer.special import described

TEXTS = [
    "Once upon a time",
    "  two  spaces\n\tand a tab ",
    "naïve 日本語 🙂🙂 é e\u0301",
    "12 345",
    "\nso",
    " söylem اکتبر údajů",
]
OLDER = {  # what stood in the folders before there was a tokenizer.json
    "llama-3": ["tokenizer.model"],
    "llama-2": ["tokenizer.model"],
    "qwen2": ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"],
    "roberta": ["vocab.json", "merges.txt", "tokenizer_config.json"],
}
EOS = {"llama-3": 128001, "llama-2": 2, "qwen2": 151643, "roberta": 2}


def parts(source: Path, names: list[str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, folder / name)
    return folder


def require_vectors(tokenizer: Tokenizer, folder: Path, end: list[int]) -> int:
    """Ids and text of every vector of one text; how many there were. Text alone: what spells `<mask>` is read apart."""
    vectors = [row for row in json.loads((folder / "vectors.json").read_text()) if "decoded" in row]
    for row in vectors:
        assert [*tokenizer.begin(row["text"], raw=True), *end] == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"]) == row["decoded"]
    return len(vectors)


@pytest.mark.parametrize("name", ["llama-3", "qwen2", "roberta"])
def test_a_published_tokenizer_gives_its_own_ids_and_texts(name, shared):
    folder = shared / "models" / "tokenizers" / name
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos == EOS[name]
    assert require_vectors(tokenizer, folder, [2] if name == "roberta" else []) >= 19


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3", "llama-2", "qwen2", "roberta"])
def test_the_older_forms_give_the_same_ids(name, shared, tmp_path):
    folder = shared / "models" / "tokenizers" / name
    older = parts(folder, OLDER[name], tmp_path)
    tokenizer = Tokenizer.load(older, EOS[name])
    assert require_vectors(tokenizer, folder, [2] if name == "roberta" else []) >= 19
    tokenizer.save(older)
    again = Tokenizer.load(older, EOS[name])
    assert again.special == tokenizer.special and again.identity == tokenizer.identity
    if name != "llama-2":  # which came without one
        published = Tokenizer.load(folder)
        assert all(published.begin(text) == tokenizer.begin(text) for text in TEXTS)
        assert published.inner.get_vocab() == tokenizer.inner.get_vocab()
        theirs, own = (repr(sorted(t.inner.get_added_tokens_decoder().items())) for t in (published, tokenizer))
        assert theirs == own
        assert published.special.start == tokenizer.special.start


def test_roberta_frames_pairs_and_knows_its_mask_where_it_is_asked_to(shared):
    folder = shared / "models" / "tokenizers" / "roberta"
    tokenizer = Tokenizer.load(folder)
    tokenizer.inner.encode_special_tokens = False
    rows = [row for row in json.loads((folder / "vectors.json").read_text()) if "decoded" not in row]
    for row in rows:
        given = row["text"] if isinstance(row["text"], list) else [row["text"]]
        assert tokenizer.inner.encode(*given).ids == row["ids"]
    assert len(rows) == 3


def test_a_small_sentencepiece_model_is_its_tokenizer_json(shared, tmp_path):
    folder = shared / "models" / "stories260K"
    config = parts(folder, ["tokenizer.model", "config.json", "generation_config.json"], tmp_path)
    published, bare = Tokenizer.load(folder), Tokenizer.load(config)
    assert (published.eos, published.ends, published.start) == (2, (2, 1), (1,))
    assert (bare.special.bos, bare.start, set(bare.ends)) == (1, (1,), {1, 2})
    for text in TEXTS:
        assert published.begin(text) == bare.begin(text) and published.decode(bare.encode(text)) == text
    for row in json.loads((folder / "golden.json").read_text())["greedy"]:
        assert bare.begin(row["prompt"]) == row["input_ids"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["stories260K", "tokenizers/llama-2"])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(name, shared, tmp_path):
    import sentencepiece as library

    folder = parts(shared / "models" / name, ["tokenizer.model"], tmp_path)
    theirs, ours = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), Tokenizer.load(folder, 2)
    for text in [*TEXTS, "".join(map(chr, range(1, 600))), "a" * 200, "<s>not control</s>"]:
        assert ours.encode(text) == theirs.encode(text)


def unigram(folder: Path) -> None:
    """A SentencePiece model of the other kind, small enough to write by hand."""
    import struct

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def piece(text: str, score: float, kind: int = 1) -> bytes:
        return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))

    pieces = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3), piece("▁", -2), piece("▁he", -1.5)]
    pieces += [piece("h", -4), piece("e", -4), piece("y", -3), piece("hey", -9)]
    (folder / "tokenizer.model").write_bytes(b"".join(pieces) + field(2, b"\x18\x01"))


def test_a_unigram_model_takes_the_best_scored_pieces(tmp_path):
    unigram(tmp_path)
    tokenizer = Tokenizer.load(tmp_path, 2)
    assert tokenizer.encode("hey") == [4, 7] and tokenizer.encode("  hey  y ") == [4, 7, 3, 7], "spaces are collapsed"
    assert tokenizer.follow("hey") == [8], "within a text no space is put before it"
    assert tokenizer.decode([4, 7, 3, 7]) == "hey y"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no SentencePiece model"),
        (b"\n", "the file ends within a number"),
        (b"\n\x05ab", "the file ends within a field"),
        (b"\x0b\x01", "a field of type 3"),
        (b"\n" + bytes([3]) + b"\n\x01a" + b"\x12\x02\x18\x03", "words or characters"),
        ((b"\n" + bytes([3]) + b"\n\x01a") * 2, "a duplicate piece"),
        (b"IQ== 0\nIg== 1\n", "2 ranks; only the 128000 of Llama 3 are supported"),
        (b"IQ== 0\n!!! x\n", "not a token and its rank"),
        (b"not a model", "not a token and its rank"),
    ],
)
def test_a_broken_model_is_refused_with_what_is_wrong(data, says, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(WeightsError, match=rf"tokenizer\.model: not a readable tokenizer: .*{says}"):
        Tokenizer.load(tmp_path, 0)


@pytest.mark.parametrize(
    ("maker", "merges", "says"),
    [
        ("SomeTokenizer", "a b", "unknown tokenizer_class"),
        ("GPT2Tokenizer", "a b c", "not a merge of two tokens"),
        ("GPT2Tokenizer", "a x", "out of vocabulary"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused_with_what_is_wrong(maker, merges, says, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": maker}))
    with pytest.raises(WeightsError, match=rf"merges\.txt: not a readable tokenizer: .*{says}"):
        Tokenizer.load(tmp_path, 0)


# --- a vocab.txt ------------------------------------------------------------------------------------------------------

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "owl",
    "##s",
    "Owl",
    "é",
    "e",
    "日",
    "本",
    "日本",
    ".",
    "!",
]
BERT_TEXTS = [
    "The owls!",
    "the Owls .",
    "é e\u0301 É",
    "日本",
    "日本 owl日",
    "",
    "a\tzzz\u200b",
    "[MASK] [SEP]",
    "x" * 150,
]


def words(folder: Path, **config: object) -> Path:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("files", [["vocab.txt", "tokenizer_config.json"], ["vocab.txt"]])
def test_a_vocabulary_of_words_is_the_tokenizer_json_that_was_made_of_it(files, minilm, tmp_path):
    folder = parts(minilm, files, tmp_path)
    found, published = (read_inner(at, described(at)) for at in (folder, minilm))
    assert found.to_str() == published.to_str()
    assert found.encode("An owl.").tokens == ["[CLS]", "an", "owl", ".", "[SEP]"]


@pytest.mark.parity
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_the_settings_of_a_bert_mean_what_they_mean_to_transformers(lower, strip, chinese, tmp_path):
    import transformers as library

    settings = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    words(tmp_path, tokenizer_class="BertTokenizerFast", **settings)
    theirs = library.BertTokenizerFast.from_pretrained(tmp_path)
    ours = read_inner(tmp_path, described(tmp_path))
    for text in BERT_TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    pair = ours.encode("the owl", "é")
    expected = theirs("the owl", "é")
    assert (pair.ids, pair.type_ids) == (expected["input_ids"], expected["token_type_ids"])
    assert ours.decode(pair.ids) == theirs.decode(pair.ids, skip_special_tokens=True)


def test_special_tokens_of_another_spelling_are_those_that_the_files_name(tmp_path):
    folder = words(tmp_path, sep_token="!", unk_token={"content": "[MASK]"}, mask_token="[UNK]")
    assert read_inner(folder, described(folder)).encode("the zebra").ids == [2, 5, 4, 15]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"tokenizer_class": "MPNetTokenizer"}, "unknown tokenizer_class 'MPNetTokenizer'; expected BertTokenizer"),
        ({"sep_token": "</s>"}, "the vocabulary lacks </s>, its sep_token"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize and never_split"),
        ({"never_split": ["owl"]}, "do_basic_tokenize and never_split"),
    ],
)
def test_a_vocabulary_of_words_that_is_read_otherwise_is_refused(config, says, tmp_path):
    folder = words(tmp_path, **config)
    with pytest.raises(WeightsError, match=rf"vocab\.txt: not a readable tokenizer: .*{says}"):
        read_inner(folder, described(folder))


# --- the files beside it ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    Tokenizer.train(["the sum of two and two is four"], 270).save(tmp_path)
    return tmp_path


def write(folder: Path, **files: dict) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_tokens_added_beside_a_tokenizer_stand_at_their_ids(folder):
    size = Tokenizer.load(folder, 0).vocab_size
    write(
        folder, added_tokens={"<b>": size + 1, "<a>": size}, tokenizer_config={"bos_token": "<a>", "pad_token": "<b>"}
    )
    tokenizer = Tokenizer.load(folder, 0)
    assert (tokenizer.special.bos, tokenizer.special.pad, tokenizer.vocab_size) == (size, size + 1, size + 2)
    assert not {size, size + 1} & {*tokenizer.encode("<a> is text, <b> too")}
    assert tokenizer.start == (), "a name alone puts nothing before a text"
    write(folder, added_tokens={"<b>": size + 7})
    with pytest.raises(WeightsError, match=rf"added_tokens\.json: <b>: a token has two ids; expected {size + 7}"):
        Tokenizer.load(folder, 0)


@pytest.mark.parametrize("asked", [True, False, None])
def test_the_configuration_says_whether_a_sequence_begins_with_bos(asked, folder):
    size = Tokenizer.load(folder, 0).vocab_size
    facts = {"bos_token": {"content": "<a>"}, "add_bos_token": asked}
    write(folder, added_tokens={"<a>": size}, tokenizer_config=facts)
    tokenizer = Tokenizer.load(folder, 0)
    assert tokenizer.begin("two") == [*([size] if asked else []), *tokenizer.encode("two")]
    again = folder / "again"
    again.mkdir()
    tokenizer.save(again)
    assert Tokenizer.load(again).special == tokenizer.special


def test_what_a_file_names_special_is_no_text_even_where_the_vocabulary_has_it(folder):
    plain = Tokenizer.load(folder, 0)
    piece = plain.vocab_size - 1
    assert plain.decode([piece]).strip()
    write(folder, tokenizer_config={"pad_token": plain.inner.id_to_token(piece)})
    named = Tokenizer.load(folder, 0)
    assert (named.special.pad, named.decode([piece]), named.vocab_size) == (piece, "", plain.vocab_size)


def test_a_beginning_that_the_tokenizer_lacks_is_refused(folder):
    write(folder, tokenizer_config={"bos_token": "<nowhere>", "add_bos_token": True})
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json: bos_token: .* lacks: <nowhere>"):
        Tokenizer.load(folder, 0)


def test_the_tokenizers_own_end_comes_first_and_generation_config_decides_about_the_others(folder):
    write(folder, config={"eos_token_id": [5, 6]})
    assert Tokenizer.load(folder).ends == (5, 6)
    write(folder, generation_config={"eos_token_id": [7, 6, 5]})
    assert Tokenizer.load(folder).ends == (7, 6, 5)
    write(folder, special_tokens_map={"eos_token": "<|end|>"})
    assert Tokenizer.load(folder).special == Special(0, (0, 7, 6, 5), names=(("eos_token", "<|end|>"),))
    write(folder, tokenizer_config={"eos_token": None})
    assert Tokenizer.load(folder).eos == 0, "null does not take back what another file names"


@pytest.mark.parametrize("value", ["2", [1, None], -1, True, 1 << 40, {"id": 3}])
def test_an_end_that_is_no_id_is_refused_by_its_file(value, folder):
    write(folder, generation_config={"eos_token_id": value})
    with pytest.raises(WeightsError, match=r"generation_config\.json: eos_token_id: not a token"):
        Tokenizer.load(folder, 0)


def test_without_any_end_there_is_no_tokenizer(folder):
    with pytest.raises(WeightsError, match=r"eos: no token ends a text; name it in config\.json"):
        Tokenizer.load(folder)


def test_what_cuts_and_pads_texts_in_a_file_is_left_out(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    data["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"}
    plain = Tokenizer.load(folder, 0)
    write(folder, tokenizer=data)
    tokenizer = Tokenizer.load(folder, 0)
    assert tokenizer.encode("two and two is four") == plain.encode("two and two is four")
    assert tokenizer.identity == plain.identity


def test_a_file_larger_than_the_limit_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(reading, "LIMIT", 1000)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: the file is too large; expected at most 1,000 bytes"):
        Tokenizer.load(folder, 0)
