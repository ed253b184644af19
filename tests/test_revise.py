"Operations on texts, errors put in and mended, the stage revise."
import itertools, json
import numpy as np, pandas as pd, pytest
from pathgen import revise as rv
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.findings import claims
from pathgen.morphometry import PHRASES, describe_findings, load_rules, phrase
from pathgen.revise import Operation
from test_describe import folder

LIST = "The section shows infiltrating glands, necrosis and nuclear pleomorphism."

@pytest.mark.parametrize("words,left", [
    ("infiltrating glands", "The section shows necrosis and nuclear pleomorphism."),
    ("necrosis", "The section shows infiltrating glands and nuclear pleomorphism."),
    ("nuclear pleomorphism", "The section shows infiltrating glands and necrosis.")])
def test_an_item_leaves_its_list(words, left):
    assert rv.apply(LIST, Operation(op="delete", before=words)) == left

@pytest.mark.parametrize("text,words,left", [
    ("Adipose tissue is seen. There is necrosis.", "necrosis", "Adipose tissue is seen."),
    ("Mucin and necrosis are present.", "necrosis", "Mucin is present."),
    ("Examination reveals no necrosis, no mitotic figures and no mucin.", "no mitotic figures",
     "Examination reveals no necrosis and no mucin."),
    ("Examination reveals no necrosis.", "no necrosis", "")])
def test_sentences_stay_sentences(text, words, left):
    assert rv.apply(text, Operation(op="delete", before=words)) == left

@pytest.mark.parametrize("text,words,whole", [
    ("The field shows adipose tissue.", "a lymphocytic infiltrate", "The field shows adipose tissue. The field also contains a lymphocytic infiltrate."),
    ("The cells display enlarged nuclei.", "mitotic figures", "The cells display enlarged nuclei and mitotic figures."),
    ("The cells display enlarged nuclei, mitotic figures and nuclear pleomorphism.", "prominent nucleoli",
     "The cells display enlarged nuclei, mitotic figures, nuclear pleomorphism and prominent nucleoli."),
    ("The field shows adipose tissue.", "There is mucin.", "The field shows adipose tissue. There is mucin."),
    ("There is mucin.", "This is tissue from the colon.", "This is tissue from the colon. There is mucin.")])
def test_a_finding_joins_its_kind(text, words, whole):
    assert rv.apply(text, Operation(op="add", after=words)) == whole

@pytest.mark.parametrize("o,says", [
    (Operation(op="delete", before="mucin"), "not in the text"), (Operation(op="delete"), "not in the text"),
    (Operation(op="edit", before="mucin", after="necrosis"), "not in the text"),
    (Operation(op="add", after="a lovely field"), "names no finding"),
    (Operation(op="delete", before="The section shows"), "more than it says|no list item")])
def test_what_does_not_fit_is_refused(o, says):
    with pytest.raises(ValueError, match=says): rv.apply(LIST, o)
    text, done, refused = rv.carry_out(LIST, [o])
    assert text == LIST and not done and len(refused) == 1 and refused[0]["error"]

def random_case(i):
    g = np.random.default_rng(i)
    said = {str(c):bool(g.random() < .8) for c in g.choice(list(PHRASES), g.integers(2,9), replace=False)}
    return describe_findings(said, "colon", i), {c:said.get(c, False) for c in PHRASES}

@pytest.mark.parametrize("op", ["add","delete","edit"])
def test_an_error_and_its_inverse_cancel(op):
    n = 0
    for i in range(150):
        text, truth = random_case(i)
        made = rv.inject(text, truth, op, i)
        if made is None: continue
        wrong, o, lost, new = made
        n += 1
        assert claims(wrong) != claims(text)
        assert claims(rv.apply(wrong, rv.inverse(o))) == claims(text)
        assert new is None or (claims(wrong)[new] and not truth[new])
        assert lost is None or (truth[lost] and not claims(wrong).get(lost))
    assert n > 90

def test_a_reader_who_knows_repairs_everything_and_touches_nothing_else():
    rules = {c:dict(add=.9, drop=.3) for c in PHRASES}
    good = {k:[] for k in ("none","add","delete","edit")}
    for i in range(80):
        text, truth = random_case(i)
        seen = {c:.99 if v else .01 for c,v in truth.items()}
        for t in rv.trials(text, truth, i): good[t["op"]].append(rv.outcome(t, rv.proposals(t["wrong"], seen, rules), truth)["good"])
    assert all(len(v) > 40 for v in good.values())
    assert np.mean(good["none"]) == 1 and min(np.mean(good[k]) for k in ("add","delete","edit")) > .97

def test_doubt_changes_nothing():
    rules = {c:dict(add=.9, drop=.3) for c in PHRASES}
    for i in range(30):
        text, truth = random_case(i)
        assert rv.proposals(text, {c:.6 for c in truth}, rules) == []

def test_a_trial_starts_from_a_right_text():
    text = "The field shows adipose tissue. The cells display enlarged nuclei and nuclear pleomorphism."
    right = rv.put_right(text, dict(adipose=True, enlarged_nuclei=False, pleomorphism=True))
    assert claims(right) == dict(adipose=True, pleomorphism=True)
    assert rv.put_right(text, {}) == text # of what nothing is known, nothing is wrong

def described(root, **kw):
    folder(root, **kw)
    p = read_table(root/"patches.parquet").query("kept")
    write_table(p[["patch_id","slide_id"]].assign(text="The breast tissue in this field contains a solid growth pattern. "
        "The supporting tissue contains adipose tissue."), root/"text"/"descriptions.parquet")
    return root

def run(root, **kw): return rv.run_revise(**dict(data=root, seed=0, workers=1, max_failed=0., provider="builtin",
                                                 mpp_if_missing=None, trials_per_slide=2)|kw)

def test_the_stage_writes_texts_edits_and_numbers(tmp_path):
    df, tests, tables = run(described(tmp_path, truth=True))
    assert list(df.columns) == rv.COLUMNS and len(df) == 6
    m = read_json(tmp_path/"metrics"/"revise.json")
    for r in df.itertuples():
        first = "The breast tissue in this field contains a solid growth pattern. The supporting tissue contains adipose tissue."
        again, done, _ = rv.carry_out(first, [Operation(**o) for o in json.loads(r.edits)])
        assert again == r.text # the edits explain the text
    assert {"precision_before","recall_before","recall_after","untouched","repaired_add"} <= set(m)
    assert df.text.str.contains("breast").all() # the tissue is named whatever was taken out
    assert set(tests.op) <= {"none","add","delete","edit"} and len(tests)
    assert 0 <= m["untouched"] <= 1 and m["n_untouched"] == (tests.op == "none").sum()

def test_a_relaunch_keeps_what_is_done(tmp_path):
    run(described(tmp_path))
    f = tmp_path/"text"/"revisions"/"S1.parquet"
    before, whole = f.stat().st_mtime_ns, (tmp_path/"text"/"revisions.parquet").read_bytes()
    (tmp_path/"text"/"revisions"/"S2.parquet").unlink()
    run(tmp_path)
    assert f.stat().st_mtime_ns == before and (tmp_path/"text"/"revisions.parquet").read_bytes() == whole

def test_a_changed_text_is_revised_anew(tmp_path):
    run(described(tmp_path))
    before = (tmp_path/"text"/"revisions"/"S1.parquet").stat().st_mtime_ns
    t = read_table(tmp_path/"text"/"descriptions.parquet")
    write_table(t.assign(text=t.text.where(t.slide_id != "S1", "The field shows necrosis.")), tmp_path/"text"/"descriptions.parquet")
    run(tmp_path)
    assert (tmp_path/"text"/"revisions"/"S1.parquet").stat().st_mtime_ns > before

@pytest.mark.parametrize("drop,says", [("text/descriptions.parquet","pathgen run describe"), ("patches.parquet","pathgen run select")])
def test_a_missing_input_names_its_stage(tmp_path, drop, says):
    (described(tmp_path)/drop).unlink()
    with pytest.raises(PathgenError, match=says): run(tmp_path)

def test_an_unknown_provider_names_those_there_are(tmp_path):
    with pytest.raises(PathgenError, match="builtin"): run(described(tmp_path), provider="oracle")

def test_changes_are_marked():
    html = rv.mark_changes("a b c", "a d c")
    assert html.count("<span") == 2 and "line-through\">b<" in html and "c8e6c9\">d<" in html
