"""Cleaning of reports, on made-up ones and on the 240 noisy TCGA-PRAD reports where they are at hand."""
import re
from pathlib import Path
import pandas as pd, pytest
from conftest import ROOT
from pathgen.chat import ask
from pathgen.core import PathgenError, read_json
from pathgen.findings import claims
from pathgen.real import kept_of_gold
from pathgen.reports import (BARCODE, CLEAN, FORBIDDEN, MEASURE, Parts, choose, clean, cut, items, kept_lines, measure_reports,
                             mend, pack, read_report, run_reports, sentences, tidy)

PRAD = ROOT.parent/"shared/data/reports/tcga_prad_noisy"
real = pytest.mark.skipif(not PRAD.exists(), reason="needs ../shared/data/reports, which this checkout lacks")

REPORT = """TCGA- AB-1234-01A - PR
UUID : 01234567-89AB-CDEF-0123-456789ABCDEF
III IIIIIIII 1111111 IIIIII
Clinical History: PSA 9, biopsy with necrosis.
Gross Description:
Received in formalin is a 38 g prostate, 4 x 4.2 x 3 cm, with hemorrhage.
FINAL DIAGNOSIS:
1. Prostate, radical prostatectomy:
- Poorly differentiated adenocarcinoma, Gleason score 4+5=9, 2.1 cm (slide A3).
- Perineural invasion: present.
- No lymphovascular invasion, see report.
Page 1 of 2
Electronically signed by A. Pathologist, M.D.
"""

@pytest.mark.parametrize("text", ["1.8 cm", "3 mm", "41.0 grams", "4 x 3 x 2", "4.2x3.9", "0.07 em", "50 gm", "2,5 cm", "57 ml", "6-mm"])
def test_measurements_are_seen(text): assert MEASURE.search(f"a nodule of {text} in it")

@pytest.mark.parametrize("text", ["Gleason 3+4=7", "30% of the gland", "0/12 nodes", "grade 3", "pattern 4 (70%)", "7/10"])
def test_grades_are_no_measurements(text): assert not MEASURE.search(text)

def test_clean_keeps_and_drops():
    parts = ask(CLEAN, inputs=dict(report=REPORT)).value.parts
    text, said = " ".join(parts), claims(" ".join(parts))
    assert said["gleason"] and said["perineural_invasion"] and said["vascular_invasion"] is False
    assert "4+5=9" in text and "Poorly differentiated adenocarcinoma" in text
    assert "necrosis" not in said and "hemorrhage" not in said
    for r in (MEASURE, FORBIDDEN, BARCODE): assert not r.search(text)

@pytest.mark.parametrize("s", ["No necrosis (0.5 cm away) is seen.", "NO PERINEURAL INVASION IS IDENTIFIED.", "Margins: free of tumor, 2 mm.",
    "NO ANGIOLYMPHATIC INVASION, NO EXTRAPROSTATIC EXTENSION (SEE COMMENT)."])
def test_tidy_never_turns_a_denial(s):
    was, now = claims(s), claims(tidy(s))
    assert now and all(was[c] == v for c,v in now.items())

def test_torn_columns_pair_nothing():
    lines = ["Perineural invasion:", "Vascular invasion:", "Margins:", "Present", "Absent", "Free"]
    assert not any("Present" in i and "invasion" in i for i in items(lines))
    assert "perineural_invasion" not in claims(" ".join(sentences("DIAGNOSIS:\nAdenocarcinoma.\n" + "\n".join(lines))))

def test_label_and_value_on_two_lines():
    assert items(["Perineural Invasion:", "", "Identified"]) == ["Perineural Invasion: Identified"]
    assert items(["LYMPHOVASCULAR INVASION", "ABSENT"]) == ["LYMPHOVASCULAR INVASION: ABSENT"]

def test_wrapped_lines_are_joined():
    text = ["- PROSTATIC ADENOCARCINOMA INVOLVING THE RIGHT AND LEFT LOBES", "OF THE PROSTATE."]
    assert items(text) == [" ".join(text)]

def test_misread_headings_fall_back():
    assert kept_lines("GROSS DESCRIPTION:\nSections show cribriform glands.") == ["GROSS DESCRIPTION:", "Sections show cribriform glands."]

def test_long_sentences_are_cut():
    s = "Adenocarcinoma with " + ", ".join(f"necrosis number {i} in the left lobe" for i in range(20)) + "."
    pieces = cut(s)
    assert max(len(p.split()) for p in pieces) <= 50 and len(pieces) > 2
    assert " ".join(pieces).count("necrosis") == 20
    assert max(len(p.split()) for p in clean(s)["parts"]) <= 50

def test_at_most_three_parts_and_the_best_stay():
    words = "in the left and the right lobe of the gland, from the apex to the base and into the bladder neck as well"
    ss = [f"{x} {words}." for x in ("Necrosis", "Mucin", "Adipose tissue", "Lymphocytes", "Perineural invasion", "Benign tissue",
                                    "Cribriform glands", "Gleason score 4+3=7", "Prominent nucleoli")]
    kept = choose(ss, 50, 3)
    assert len(pack(kept)) <= 3 and not any("Benign" in s for s in kept)
    assert any("Gleason" in s for s in kept) and any("Perineural" in s for s in kept)
    assert kept == [s for s in ss if s in kept]

def test_schema_rules():
    for bad in ("a nodule of 3 cm", "as mentioned", "UUID 12345678-1234", "w " * 51):
        with pytest.raises(ValueError): Parts(parts=[bad])
    with pytest.raises(ValueError): Parts(parts=[])

@pytest.fixture
def root(tmp_path):
    (tmp_path/"in").mkdir()
    texts = {f"P{i:03}": REPORT.replace("Gleason score 4+5=9", f"Gleason score 3+{i%3+3}={i%3+6}") for i in range(12)}
    for k,t in texts.items(): (tmp_path/"in"/f"{k}.txt").write_text(t)
    (tmp_path/"in/P000.txt").write_text(" \f\n")
    files = pd.DataFrame([dict(report_id=k, patient_id=k, path=str(tmp_path/"in"/f"{k}.txt")) for k in texts])
    files.to_parquet(tmp_path/"report_files.parquet")
    return tmp_path

RUN = dict(provider="builtin", max_words=50, max_parts=3, retries=2, max_failed=.1, workers=1)

def test_run_goes_on_after_a_bad_report(root):
    parts, files, m = run_reports(root, **RUN)
    assert parts.report_id.nunique() == 11 and m["failed"] == 1 and m["measurements_left"] == 0 and "findings_kept" not in m
    errors = pd.read_parquet(root/"reports/errors.parquet")
    assert errors.item.tolist() == ["P000"] and "P000.txt is empty" in errors.error[0]
    assert list(parts) == ["report_id", "patient_id", "part", "text", "n_words", "provider", "model", "prompt_hash"]
    assert read_json(root/"metrics/reports.json") == m

def test_run_twice_is_the_same_and_cheap(root, monkeypatch):
    run_reports(root, **RUN)
    bytes_, times = (root/"reports.parquet").read_bytes(), {p.name:p.stat().st_mtime_ns for p in (root/"reports").glob("P*.parquet")}
    run_reports(root, **RUN)
    assert (root/"reports.parquet").read_bytes() == bytes_
    assert {p.name:p.stat().st_mtime_ns for p in (root/"reports").glob("P*.parquet")} == times

def test_a_changed_report_is_done_again_alone(root):
    run_reports(root, **RUN)
    old = {p.name:p.stat().st_mtime_ns for p in (root/"reports").glob("P*.parquet")}
    (root/"in/P003.txt").write_text(REPORT.replace("Poorly", "Well"))
    parts, _, _ = run_reports(root, **RUN)
    new = {p.name:p.stat().st_mtime_ns for p in (root/"reports").glob("P*.parquet")}
    assert [k for k in old if old[k] != new[k]] == ["P003.parquet"]
    assert "Well differentiated" in parts[parts.report_id == "P003"].text.iloc[0]

def test_too_many_bad_reports_fail_the_stage(root):
    for i in range(1, 4): (root/f"in/P{i:03}.txt").unlink()
    with pytest.raises(PathgenError, match="4 of 12 failed"): run_reports(root, **RUN)

@pytest.mark.parametrize("change,why", [(dict(provider="gpt"), "unknown provider"), (dict(max_words=77), "max_words"), (dict(max_parts=0), "max_parts")])
def test_bad_parameters_stop_before_work(root, change, why):
    with pytest.raises(PathgenError, match=why): run_reports(root, **RUN | change)
    assert not (root/"reports").exists()

def test_no_inventory(tmp_path):
    with pytest.raises(PathgenError, match="report_files.parquet is missing: run `pathgen run slides`"): run_reports(tmp_path, **RUN)

def test_not_text(tmp_path):
    (tmp_path/"a.txt").write_bytes(b"%PDF-1.4 \xff\xfe\x00")
    with pytest.raises(PathgenError, match="a.txt is not UTF-8"): read_report(tmp_path/"a.txt")

def test_truth_is_scored_with_polarity():
    parts = pd.DataFrame([dict(report_id="r", text="No necrosis. Mucin.", n_words=3)])
    files = pd.DataFrame([dict(report_id="r", patient_id="p")])
    m = measure_reports(parts, files, dict(p=dict(necrosis=True, mucin=True, mitoses=False)))
    assert m["findings_kept"] == pytest.approx(1/3)

@pytest.fixture(scope="module")
def cleaned():
    out = {}
    for p in sorted(PRAD.glob("*.txt")):
        try: out[p.name[:12]] = ask(CLEAN, inputs=dict(report=read_report(p))).value.parts
        except PathgenError as e: out[p.name[:12]] = str(e)
    return out

@real
def test_real_reports_are_clean(cleaned):
    good = {k:v for k,v in cleaned.items() if isinstance(v, list)}
    assert len(cleaned) == 240 and len(good) == 224
    assert all("is empty" in v for v in cleaned.values() if isinstance(v, str))
    for k,parts in good.items():
        assert 1 <= len(parts) <= 3, k
        for p in parts:
            assert len(p.split()) <= 50, k
            for r in (MEASURE, FORBIDDEN, BARCODE): assert not r.search(p), (k, p)
            assert not re.search(r"TCGA|year.old|formalin|cassette|electronically|redacted", p, re.I), (k, p)

@real
def test_real_reports_keep_grade_and_invasion(cleaned):
    kept = kept_of_gold({k: " ".join(v) for k,v in cleaned.items() if not isinstance(v, str)}, pd.read_csv(ROOT/"data/prad_gold.csv"))
    assert len(kept) > 150 and kept.kept.mean() >= .95, kept[~kept.kept]
