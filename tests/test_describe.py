"The stage describe on a drawn folder: relaunch, faults, provenance, truth."
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import describe as ds
from pathgen.core import PathgenError, read_json, read_table, write_json, write_table
from pathgen.findings import claims
from pathgen.morphometry import PHRASES, load_rules

def folder(root, slides=("S1","S2"), n=3, mpp=.5, truth=False):
    "patches.parquet, slides.parquet, images; with a truth that every patch is fat."
    rows = [dict(patch_id=f"{s}_{i*336}_0", slide_id=s, x=i*336, y=0, px=336, mpp=mpp, kept=i < n) for s in slides for i in range(n+1)]
    g = np.random.default_rng(0)
    for r in rows:
        p = root/"patches"/r["slide_id"]/f"{r['patch_id']}.jpg"
        p.parent.mkdir(parents=True, exist_ok=True)
        if r["kept"]: Image.fromarray(g.integers(150, 255, (48,48,3)).astype(np.uint8)).resize((336,336)).save(p)
    write_table(pd.DataFrame(rows), root/"patches.parquet")
    write_table(pd.DataFrame([dict(slide_id=s, source="breast") for s in slides]), root/"slides.parquet")
    if truth:
        t = root/"phantom"/"truth"
        t.mkdir(parents=True)
        for s in slides:
            one = np.ones((21,84), np.uint8)
            for e,z in {"":one, ".artefacts":0*one, ".painted":np.stack([one,one,0*one], -1)}.items(): Image.fromarray(z).save(t/f"{s}{e}.png")
            write_json(dict(slide_id=s, source="breast", mpp=.5, downsample=16, mitoses=[], report={},
                            regions=[dict(id=1, region_class="adipose", parts=dict(ground=dict(adipose=True, necrosis=False)))]), t/f"{s}.json")
    return root

def run(root, **kw): return ds.run_describe(**dict(data=root, seed=0, workers=1, max_failed=0., provider="builtin", mpp_if_missing=None)|kw)

def test_every_kept_patch_gets_one_row(tmp_path):
    df, patches, _ = run(folder(tmp_path))
    assert list(df.columns) == ds.COLUMNS
    assert sorted(df.patch_id) == sorted(patches.patch_id) and len(df) == 6
    assert (df.provider == "builtin").all() and df.model.str.startswith("morphometry-").all() and (df.prompt_hash != "").all()
    assert df.text.str.contains("breast").all()
    pd.testing.assert_frame_equal(df.reset_index(drop=True), read_table(tmp_path/"text"/"descriptions.parquet"))

def test_a_relaunch_keeps_what_is_done(tmp_path):
    run(folder(tmp_path))
    files = sorted((tmp_path/"text"/"descriptions").glob("S*.parquet"))
    before = {f:f.stat().st_mtime_ns for f in files}
    whole = (tmp_path/"text"/"descriptions.parquet").read_bytes()
    files[1].unlink()
    run(tmp_path)
    assert files[0].stat().st_mtime_ns == before[files[0]] and files[1].exists()
    assert (tmp_path/"text"/"descriptions.parquet").read_bytes() == whole

def test_a_changed_image_is_described_anew(tmp_path):
    run(folder(tmp_path))
    f = tmp_path/"text"/"descriptions"
    before = {s:(f/f"{s}.parquet").stat().st_mtime_ns for s in ("S1","S2")}
    Image.fromarray(np.full((336,336,3), 240, np.uint8)).save(tmp_path/"patches"/"S2"/"S2_0_0.jpg")
    run(tmp_path)
    assert (f/"S1.parquet").stat().st_mtime_ns == before["S1"] and (f/"S2.parquet").stat().st_mtime_ns > before["S2"]

def test_a_broken_image_stops_its_slide_alone(tmp_path):
    folder(tmp_path)
    (tmp_path/"patches"/"S2"/"S2_0_0.jpg").write_bytes(b"\xff\xd8 cut")
    df, _, _ = run(tmp_path, max_failed=.5)
    assert set(df.slide_id) == {"S1"}
    e = read_table(tmp_path/"text"/"descriptions"/"errors.parquet")
    assert list(e["item"]) == ["S2"] and "S2_0_0.jpg" in e.error[0] and "pathgen run select" in e.error[0]
    with pytest.raises(PathgenError, match="S2_0_0.jpg"): run(tmp_path)

def test_a_slide_without_a_scale_is_an_error_that_names_the_mend_unless_one_is_given(tmp_path):
    folder(tmp_path)
    patches = read_table(tmp_path/"patches.parquet")
    write_table(patches.assign(mpp=patches.mpp.where(patches.slide_id != "S2")), tmp_path/"patches.parquet")
    df, _, _ = run(tmp_path, max_failed=.5)
    assert set(df.slide_id) == {"S1"} and read_json(tmp_path/"metrics"/"describe.json")["undescribed"] == 3
    e = read_table(tmp_path/"text"/"descriptions"/"errors.parquet")
    assert list(e["item"]) == ["S2"] and "S2: no µm/px" in e.error[0] and "slides.mpp_override" in e.error[0]
    with pytest.raises(PathgenError, match="describe.mpp_if_missing"): run(tmp_path)
    df, _, _ = run(tmp_path, mpp_if_missing=.5)
    assert len(df) == 6

def test_the_truth_gives_numbers(tmp_path):
    _, _, table = run(folder(tmp_path, truth=True))
    m = read_json(tmp_path/"metrics"/"describe.json")
    assert m["n"] == 6 and table.loc["adipose","true"] == 6
    assert {"recall","recall_adipose"} <= set(m) and 0 <= m["recall_adipose"] <= 1

def test_no_truth_no_numbers(tmp_path):
    run(folder(tmp_path))
    assert "precision" not in read_json(tmp_path/"metrics"/"describe.json")

@pytest.mark.parametrize("drop,says", [("patches.parquet","pathgen run select"), ("slides.parquet","pathgen run slides")])
def test_a_missing_input_names_its_stage(tmp_path, drop, says):
    folder(tmp_path)
    (tmp_path/drop).unlink()
    with pytest.raises(PathgenError, match=says): run(tmp_path)

def test_an_unknown_provider_names_those_there_are(tmp_path):
    with pytest.raises(PathgenError, match="builtin"): run(folder(tmp_path), provider="oracle")

def test_wordings_vary_by_patch_and_not_by_run(tmp_path):
    df, _, _ = run(folder(tmp_path, n=8))
    assert df.text.nunique() > 2
    assert all(claims(t) == claims(u) for t,u in zip(df.text, run(tmp_path)[0].text))

def test_grading_counts_like_by_hand(tmp_path):
    folder(tmp_path, truth=True)
    texts = pd.DataFrame([dict(patch_id="S1_0_0", slide_id="S1", text="This is adipose tissue with necrosis."),
                          dict(patch_id="S2_0_0", slide_id="S2", text="There is no necrosis.")])
    t = ds.grade(texts, read_table(tmp_path/"patches.parquet"), tmp_path)
    assert t.loc["adipose","precision"] == 1 and t.loc["adipose","recall"] == .5
    assert t.loc["necrosis","precision"] == 0 and t.loc["all","precision"] == .5

@pytest.mark.parametrize("bad", ["", "fat", None])
def test_a_bad_answer_costs_its_patch_alone(tmp_path, monkeypatch, bad):
    from pathgen import chat
    good, asked = chat.RULES["describe"], []
    def rule(**given):
        asked.append(given["seed"])
        return dict(text=bad) if given["seed"] == asked[0] else good(**given)
    monkeypatch.setitem(chat.RULES, "describe", rule)
    df, _, _ = run(folder(tmp_path), max_failed=.2)
    lost = read_table(tmp_path/"text"/"descriptions_failed.parquet")
    assert len(df) == 5 and df.text.str.len().min() > 20 and asked.count(asked[0]) == 3, "asked three times in all"
    assert len(lost) == 1 and "text: " in lost.error[0] and not set(lost.patch_id) & set(df.patch_id)
    with pytest.raises(PathgenError, match="1 of 6 descriptions failed, such as S1_"): run(tmp_path, max_failed=.1)
