"""Scores of reports against their packages, labellers against what they read."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from chexgenbench import FINDINGS, UserError
from chexgenbench_plugins.phantom.report import vocabulary
from chexgenbench_plugins.phantom.split import read_labels, read_rows
from chexgenbench_plugins.reports import scores
from chexgenbench_plugins.reports.labellers import (
    ORDER,
    CheXbert,
    PhantomLabeller,
    check_chexbert,
    positive,
)

DEMO = Path(__file__).parents[1] / "MIMIC_Splits" / "demo"
ROWS = read_rows(DEMO / "DEMO_ANNOTATIONS_TEST.csv")
WRITTEN = [row["annotated_prompt"] for row in ROWS[:120]]
PATIENTS = [row["patientID"] for row in ROWS[:120]]
MADE = [*WRITTEN[7:], *WRITTEN[:6], ""]

WORDS = st.sampled_from(["no", "left", "effusion", "edema", ".", "the", "heart", "3.5"])
REPORTS = st.lists(WORDS, max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(REPORTS, REPORTS), min_size=1, max_size=6)


# --- BLEU, ROUGE-L, METEOR ------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_is_that_of_sacrebleu(order: int) -> None:
    theirs = sacrebleu.metrics.BLEU(lowercase=True, max_ngram_order=order)
    expected = theirs.corpus_score(MADE, [WRITTEN]).score / 100
    found = scores.bleu(WRITTEN, MADE, order=order, groups=PATIENTS)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.ci_low is not None and found.ci_high is not None
    assert found.ci_low < found.value < found.ci_high


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.integers(1, 4))
def test_bleu_is_that_of_sacrebleu_on_any_reports(pairs: list[tuple[str, str]], order: int) -> None:
    written, made = [a for a, _ in pairs], [b for _, b in pairs]
    theirs = sacrebleu.metrics.BLEU(lowercase=True, max_ngram_order=order)
    expected = theirs.corpus_score(made, [written]).score / 100
    found = scores.bleu_of_sums(scores.bleu_parts(written, made, order=order).sum(axis=0), order)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_bleu_of_a_wrong_corpus_is_not_the_mean_over_reports() -> None:
    """What several report papers do, and what made BLEU of a shard depend on the shard."""
    theirs = sacrebleu.metrics.BLEU(lowercase=True, effective_order=True)
    pairs = zip(MADE, WRITTEN, strict=True)
    mean = np.mean([theirs.sentence_score(b, [a]).score / 100 for b, a in pairs])
    corpus = scores.bleu(WRITTEN, MADE, groups=PATIENTS).value
    assert abs(mean - corpus) > 0.005


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    found = scores.rouge_l(["a b c d", "a b", "x"], ["a c d", "c", "x"])
    assert found.tolist() == pytest.approx([2 * 1 * 0.75 / 1.75, 0.0, 1.0])


@pytest.mark.parametrize("score", [scores.bleu, scores.rouge_l])
def test_the_same_reports_score_one(score: Any) -> None:
    found = score(WRITTEN, WRITTEN)
    assert np.mean(getattr(found, "value", found)) == pytest.approx(1.0)


@pytest.mark.parametrize("score", [scores.bleu, scores.rouge_l])
def test_as_many_generated_as_written_reports(score: Any) -> None:
    with pytest.raises(ValueError, match="a generated report for each written one"):
        score(WRITTEN, MADE[:-1])
    with pytest.raises(ValueError, match="a generated report for each written one"):
        score([], [])


def tiny_wordnet(folder: Path) -> Path:
    """nltk's data folder with a WordNet of two synonyms, in WordNet's own file format."""
    root = folder / "corpora" / "wordnet"
    root.mkdir(parents=True)
    for kind in ("adj", "adv", "verb", "noun"):
        (root / f"{kind}.exc").write_text("")
        (root / f"data.{kind}").write_text("  1 WordNet 3.0 Copyright 2006\n")
        (root / f"index.{kind}").write_text("  1 licence\n")
    head = (root / "data.noun").read_text()
    line = f"{len(head):08d} 03 n 02 mass 0 tumor 0 000 | a lump\n"
    (root / "data.noun").write_text(head + line)
    index = "".join(f"{word} n 1 0 1 0 {len(head):08d}\n" for word in ("mass", "tumor"))
    (root / "index.noun").write_text("  1 licence\n" + index)
    names = ("adj.all", "adj.pert", "adv.all", "noun.Tops")
    (root / "lexnames").write_text("".join(f"{i:02d}\t{n}\t1\n" for i, n in enumerate(names)))
    (root / "index.sense").write_text("")
    return folder


def test_meteor_matches_words_stems_and_synonyms(tmp_path: Path) -> None:
    from nltk.translate.meteor_score import single_meteor_score

    class NoSynonyms:
        def synsets(self, word: str) -> list[Any]:
            return []

    folder = tiny_wordnet(tmp_path)
    same = scores.meteor(["no effusion"], ["no effusion"], nltk_data=folder)
    assert same.tolist() == pytest.approx([1 - 0.5 / 2**3])  # one chunk of two matches
    synonym = scores.meteor(["large mass"], ["large tumor"], nltk_data=folder)
    assert synonym.tolist() == pytest.approx([1 - 0.5 / 2**3])
    without = [
        single_meteor_score(scores.words(a), scores.words(b), wordnet=NoSynonyms())
        for a, b in zip(WRITTEN[:30], MADE[:30], strict=True)
    ]
    found = scores.meteor(WRITTEN[:30], MADE[:30], nltk_data=folder)
    assert found.tolist() == pytest.approx(without)


def test_meteor_without_wordnet_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"WordNet is not in .*data\.noun"):
        scores.meteor(["a"], ["a"], nltk_data=tmp_path)
    root = tiny_wordnet(tmp_path) / "corpora" / "wordnet"
    (root / "lexnames").write_text("no table")
    with pytest.raises(UserError, match="WordNet cannot be read"):
        scores.meteor(["a"], ["a"], nltk_data=tmp_path)


# --- BERTScore, RadGraph --------------------------------------------------------------------


def tiny_bert(folder: Path) -> Path:
    """A text encoder of two layers that knows the words of the phantom's reports."""
    from transformers import BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(tiny_config(len(names))).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_config(words: int) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=words,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )


@pytest.mark.parametrize("layer", [1, 2])
def test_bert_score_is_that_of_bert_score(tmp_path: Path, layer: int) -> None:
    theirs = pytest.importorskip("bert_score", reason="bert-score is not installed")
    folder = tiny_bert(tmp_path / "bert")
    found = scores.bert_score(WRITTEN[:20], MADE[:20], folder=folder, layer=layer, batch_size=7)
    _, _, expected = theirs.score(
        MADE[:20], WRITTEN[:20], model_type=str(folder), num_layers=layer, device="cpu"
    )
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_bert_score_of_equal_and_of_empty_reports(tmp_path: Path) -> None:
    pytest.importorskip("bert_score", reason="bert-score is not installed")
    folder = tiny_bert(tmp_path / "bert")
    found = scores.bert_score([*WRITTEN[:3], "a"], [*WRITTEN[:3], " "], folder=folder)
    assert found.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-5)
    with pytest.raises(UserError, match="text encoder of BERTScore cannot be loaded"):
        scores.bert_score(["a"], ["a"], folder=tmp_path)


def test_bert_score_runs_no_code_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bert_score", reason="bert-score is not installed")
    folder, trace = tiny_bert(tmp_path / "bert"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    own = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own | {"model_type": "mine"}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    with pytest.raises(UserError, match="text encoder of BERTScore cannot be loaded"):
        scores.bert_score(["a"], ["a"], folder=folder)
    assert not trace.exists()


def test_a_layer_that_the_text_encoder_lacks_is_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    assert scores.text_encoder_config(folder, 2).hidden_size == 16
    with pytest.raises(UserError, match="has 2 layers, and layer 3 is asked for"):
        scores.text_encoder_config(folder, 3)


def test_files_that_are_plainly_not_radgraphs_are_refused(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.json", tmp_path / "weights.th"
    config.write_text('{"model": {}}')
    torch.save({}, weights)
    scores.check_radgraph(tmp_path)
    torch.save({}, weights, _use_new_zipfile_serialization=False)
    scores.check_radgraph(tmp_path)
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="no file of torch"):
        scores.check_radgraph(tmp_path)
    for text, message in (("{}", "describes no model"), ("{", "cannot be read")):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            scores.check_radgraph(tmp_path)


def test_radgraph_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json, weights\.th missing"):
        scores.radgraph_f1(["a"], ["a"], folder=tmp_path, python=Path(sys.executable))


def test_a_failing_radgraph_quotes_no_report(tmp_path: Path) -> None:
    for name in ("config.json", "weights.th"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="RadGraph failed") as caught:
        scores.radgraph_f1(
            ["secret report"], ["another"], folder=tmp_path, python=Path(sys.executable)
        )
    assert "secret" not in f"{caught.value} {caught.value.hint}"


# --- labels ---------------------------------------------------------------------------------


def test_the_phantom_labeller_is_exact_on_the_demo_split() -> None:
    """F1 is 1 on all rows but those that repeat a prompt with other labels on purpose."""
    rows = [row for file in sorted(DEMO.glob("*.csv")) for row in read_rows(file)]
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row["annotated_prompt"], row)
    odd = [
        r for r in rows if r["chexpert_labels"] != first[r["annotated_prompt"]]["chexpert_labels"]
    ]
    assert (len(rows), len(odd)) == (4568, 12)
    kept = list(first.values())
    labels = [read_labels(row["chexpert_labels"]) for row in kept]
    truth = np.array([[label[name] for name in FINDINGS] for label in labels], np.float64)
    found = PhantomLabeller().label([row["annotated_prompt"] for row in kept])
    np.testing.assert_array_equal(found, truth)
    parts = scores.label_parts(truth, found, uncertain="positive")
    for average in ("micro", "macro"):
        assert scores.label_f1(parts, average=average).value == 1.0


def test_label_f1_is_that_of_scikit_learn() -> None:
    labeller = PhantomLabeller()
    truth, stated = labeller.label(WRITTEN), labeller.label(MADE)
    for uncertain in ("positive", "negative"):
        parts = scores.label_parts(truth, stated, uncertain=uncertain)
        real, made = positive(truth, uncertain), positive(stated, uncertain)
        for average in ("micro", "macro"):
            found = scores.label_f1(parts, average=average, groups=PATIENTS)
            expected = f1_score(real, made, average=average, zero_division=0)
            assert found.value == pytest.approx(expected, rel=1e-12)
            assert found.ci_low is not None and found.ci_low < found.value
        columns = [FINDINGS.index(name) for name in scores.FIVE]
        five = scores.label_f1(parts, average="macro", columns=columns)
        expected = f1_score(real[:, columns], made[:, columns], average="macro", zero_division=0)
        assert five.value == pytest.approx(expected, rel=1e-12)


def test_uncertain_labels_count_as_told() -> None:
    truth = np.full((1, 14), np.nan)
    truth[0, :3] = [-1.0, 1.0, 0.0]
    parts = {u: scores.label_parts(truth, truth, uncertain=u) for u in ("positive", "negative")}
    assert [parts[u][0, :, 0].sum() for u in ("positive", "negative")] == [2, 1]


def test_findings_that_nobody_states_are_told_apart() -> None:
    truth = np.zeros((4, 14))
    truth[:3, 2] = truth[0, 5] = 1.0
    assert scores.well_known(truth, uncertain="positive") == [2]
    with pytest.raises(ValueError, match="no findings"):
        scores.label_f1(np.zeros((4, 14, 3)), average="micro", columns=[])


def chexbert_state(folder: Path, config: Any) -> dict[str, torch.Tensor]:
    """Random weights under the published names: BERT below ``bert.``, 14 heads, ``module.``."""
    from transformers import BertModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        bert = BertModel(config)
        for weight in bert.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        heads = [torch.nn.Linear(config.hidden_size, 4) for _ in range(13)]
        heads.append(torch.nn.Linear(config.hidden_size, 2))
    state = {f"module.bert.{name}": value for name, value in bert.state_dict().items()}
    for at, head in enumerate(heads):
        state |= {f"module.linear_heads.{at}.{n}": v for n, v in head.state_dict().items()}
    # Older transformers saved this buffer, and the published file has it.
    state["module.bert.embeddings.position_ids"] = torch.arange(64)[None]
    return state


def tiny_chexbert(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    config = tiny_config(len(names))
    config.to_json_file(folder / "config.json")
    torch.save({"model_state_dict": chexbert_state(folder, config)}, folder / "chexbert.pth")
    return folder


def test_chexbert_reads_the_published_layout(tmp_path: Path) -> None:
    """Against the published procedure, written out: one report at a time, argmax of each head."""
    from transformers import BertModel, BertTokenizerFast

    folder = tiny_chexbert(tmp_path / "chexbert")
    found = CheXbert(folder, batch_size=5).label([*WRITTEN[:20], ""])
    state = torch.load(folder / "chexbert.pth", weights_only=True)["model_state_dict"]
    state = {name[7:]: value for name, value in state.items()}
    config = tiny_config(len(vocabulary()) + 5)
    bert = BertModel(config).eval()
    bert.load_state_dict(
        {n[5:]: v for n, v in state.items() if n.startswith("bert.") and "position_ids" not in n}
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    values = {0: np.nan, 1: 1.0, 2: 0.0, 3: -1.0}
    classes = set()
    for text, labels in zip([*WRITTEN[:20], ""], found, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            first = bert(ids["input_ids"], attention_mask=ids["attention_mask"])[0][:, 0]
        for at, name in enumerate(ORDER):
            head = f"linear_heads.{at}"
            logits = first @ state[f"{head}.weight"].T + state[f"{head}.bias"]
            chosen = int(logits.argmax())
            classes.add(chosen)
            np.testing.assert_equal(labels[FINDINGS.index(name)], values[chosen])
    assert classes == {0, 1, 2, 3}


@pytest.mark.parametrize("load", [CheXbert, check_chexbert])
def test_chexbert_refuses_other_files(tmp_path: Path, load: Callable[[Path], object]) -> None:
    """Before anything expensive as when it is loaded."""
    with pytest.raises(UserError, match=r"chexbert\.safetensors or chexbert\.pth and vocab\.txt"):
        load(tmp_path)
    folder = tiny_chexbert(tmp_path / "chexbert")
    load(folder)
    content = torch.load(folder / "chexbert.pth", weights_only=True)
    state = content["model_state_dict"]
    wrong = state | {"module.linear_heads.3.bias": torch.zeros(5)}
    torch.save({"model_state_dict": wrong}, folder / "chexbert.pth")
    with pytest.raises(UserError, match="does not hold the weights of CheXbert's network"):
        load(folder)
    del state["module.linear_heads.3.weight"]
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")
    with pytest.raises(UserError, match="does not hold the weights of CheXbert's network"):
        load(folder)
    torch.save({"model_state_dict": state, "code": Path}, folder / "chexbert.pth")
    with pytest.raises(UserError, match="without running code"):
        load(folder)
    (folder / "chexbert.pth").write_bytes(b"broken")
    with pytest.raises(UserError, match="CheXbert cannot be read"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="configuration of CheXbert cannot be read"):
        load(folder)


# --- intervals ------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_order_of_rows() -> None:
    order = np.random.default_rng(0).permutation(len(WRITTEN))
    again = [[values[i] for i in order] for values in (WRITTEN, MADE, PATIENTS)]
    first = scores.bleu(WRITTEN, MADE, groups=PATIENTS)
    second = scores.bleu(again[0], again[1], groups=again[2])
    assert (first.value, first.ci_low, first.ci_high) == pytest.approx(
        (second.value, second.ci_low, second.ci_high), rel=1e-9
    )


def test_the_influence_of_bleu_is_its_jackknife() -> None:
    """Leaving a report out changes BLEU by about its contribution, on one side of the kink of the
    brevity penalty."""
    made = [" ".join(text.split()[:-2]) for text in MADE]
    found = scores.bleu(WRITTEN, made, order=1)
    assert found.influence is not None
    parts = scores.bleu_parts(WRITTEN, made, order=1)
    sums = parts.sum(axis=0)
    left_out = scores.bleu_of_sums(sums, 1) - scores.bleu_of_sums(sums - parts, 1)
    assert np.corrcoef(left_out, found.influence.fake)[0, 1] > 0.999
    assert np.abs(left_out - found.influence.fake).max() < 0.05 * np.abs(left_out).max()
