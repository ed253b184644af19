"The stand-ins: the published layouts, labels that are true, the same bytes from the same seed, also after a kill."
import hashlib, json, os, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest
from PIL import Image
from conftest import ROOT
from pathgen import standins
from pathgen.core import PathgenError
from pathgen.paint import MALIGNANT
from pathgen.sets import read_set
from pathgen.standins import RECIPES, STEMS, draw_case, paint_image, paint_numbered, run_standins, sheet, sheets

ALL = list(RECIPES)
FEW = dict(seed=5, workers=1, max_failed=0.0, sets=ALL, train=5, val=2, test=2, questions_val=0, questions_tiny=0, questions_test=0)
LAYOUT = dict(
    lc25000=["clusters.csv", "colon_image_sets/colon_aca/colonca1.jpeg", "colon_image_sets/colon_n/colonn1.jpeg",
             "lung_image_sets/lung_aca/lungaca9.jpeg", "lung_image_sets/lung_n/lungn1.jpeg", "lung_image_sets/lung_scc/lungscc1.jpeg"],
    crc100k=[f"{p}/{c}/{c}-*.tif" for p in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K")
             for c in "ADI BACK DEB LYM MUC MUS NORM STR TUM".split()] + ["CRC-VAL-HE-7K/TUM/TUM-TCGA-*.tif"],
    skincancer=["data/tiles-v2.csv", "data/tiles/tumor_skin_epithelial_bcc/tumor_skin_epithelial_bcc_ws_*.jpg"],
    pcam=[f"camelyonpatch_level_2_split_{p}_{x}" for p in ("train", "valid", "test") for x in ("x.h5", "y.h5", "meta.csv")],
    bach=["Photos/microscopy_ground_truth.csv", "Photos/Normal/n001.tif", "Photos/Benign/b001.tif", "Photos/InSitu/is001.tif",
          "Photos/Invasive/iv009.tif"],
    osteo=["Non-Tumor/Case-*.jpg", "Non-Viable-Tumor/Case-*.jpg", "Viable/Case-*.jpg"],
    wsss4luad=["1.training/*-*-*-[[]1, 0, 0].png", "1.training/*-*-*-[[]0, 0, 1].png"],
    sicapv2=["partition/Test/Train.xlsx", "partition/Test/Test.xlsx", "wsi_labels.xlsx", "images/*_Block_Region_*_xini_*_yini_*.jpg"])

SOME = dict(FEW, sets=["lc25000", "sicapv2", "pcam"]) # copies, sheets, arrays

def hashes(root): # Of the files of SOME
    mine = lambda p: p.parts[0] in SOME["sets"] or p.stem.split("-")[0] in SOME["sets"]
    files = (p.relative_to(root) for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p): hashlib.sha256((root/p).read_bytes()).hexdigest() for p in files if mine(p)}

@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    root = tmp_path_factory.mktemp("standins")
    return root/"standins", run_standins(str(root), **FEW)

@pytest.mark.parametrize("name", ALL)
def test_layout_is_the_published_one(painted, name):
    folder = painted[0]/name
    for pattern in LAYOUT[name]: assert list(folder.glob(pattern)), pattern
    about = json.loads((folder/"standin.json").read_text())
    assert about["set"]==name and about["labels"]==list(RECIPES[name]["labels"]) and "Painted, not tissue" in about["note"]

def test_every_image_has_its_own_file_and_the_stated_form(painted):
    out, df = painted
    on_disk = df[df.name!="pcam"]
    assert not on_disk.duplicated(["name", "file"]).any()
    for r in on_disk.itertuples():
        im = Image.open(out/r.name/r.file)
        im.load()
        assert im.size==RECIPES[r.name]["px"] and im.mode=="RGB"

def test_images_of_each_label_and_part_are_as_many_as_asked(painted):
    n = painted[1].groupby(["name", "part", "label"]).size()
    want = dict(all=9, Train=5, Validation=2, Test=2, train=5, valid=2, test=2) | {"NCT-CRC-HE-100K": 7, "CRC-VAL-HE-7K": 2}
    assert all(v==(7 if (s, p)==("sicapv2", "Train") else want[p]) for (s, p, _), v in n.items())
    assert set(n.index.get_level_values(0))==set(ALL)

def test_no_case_is_in_two_parts(painted):
    for name, z in painted[1].groupby("name"):
        assert (z.groupby("case").part.nunique()==1).all() and z.case.nunique() > 1, name
    many = [paint_case(p, k) for p in RECIPES["skincancer"]["parts"] for k in range(0, 6*40, 6)]
    assert len(set(many))==3*10

def paint_case(part, k): # The case of an image, without painting it
    parts = list(RECIPES["skincancer"]["parts"])
    return k//6//4*len(parts) + parts.index(part)

def test_sheets_say_the_same_as_the_folders(painted):
    out, df = painted
    skin = pd.read_csv(out/"skincancer/data/tiles-v2.csv")
    assert all((out/"skincancer"/f).is_file() and f.split("/")[2]==c for f, c in zip(skin.file, skin["class"]))
    assert set(skin.set)=={"Train", "Validation", "Test"}
    bach = pd.read_csv(out/"bach/Photos/microscopy_ground_truth.csv", header=None)
    assert all((out/"bach/Photos"/c/f).is_file() for f, c in zip(bach[0], bach[1])) and len(bach)==36
    wsi = pd.read_excel(out/"sicapv2/wsi_labels.xlsx", dtype=str)
    for part in ("Train", "Test"):
        sheet = pd.read_excel(out/f"sicapv2/partition/Test/{part}.xlsx")
        assert list(sheet)==["image_name", "NC", "G3", "G4", "G5", "G4C"] and (sheet[["NC", "G3", "G4", "G5"]].sum(axis=1)==1).all()
        assert all((out/"sicapv2/images"/f).is_file() for f in sheet.image_name)
        assert {f.split("_Block")[0] for f in sheet.image_name} <= set(wsi.slide_id)
    clusters = pd.read_csv(out/"lc25000/clusters.csv")
    assert clusters.groupby(["class", "cluster"]).size().max()==4 and len(clusters)==45

def test_pcam_asks_for_the_centre(tmp_path):
    import h5py
    run_standins(str(tmp_path), **(FEW | dict(sets=["pcam"], train=24)))
    stem = tmp_path/"standins/pcam"
    with h5py.File(stem/"camelyonpatch_level_2_split_train_x.h5") as x, h5py.File(stem/"camelyonpatch_level_2_split_train_y.h5") as y:
        assert x["x"].shape==(48, 96, 96, 3) and y["y"].shape==(48, 1, 1, 1) and x["x"].dtype==y["y"].dtype==np.uint8
        label = y["y"][:].ravel().astype(bool)
    meta = pd.read_csv(stem/"camelyonpatch_level_2_split_train_meta.csv", index_col=0)
    assert list(meta)==["coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"] and (meta.center_tumor_patch==label).all()
    assert meta.tumor_patch[label].all() and 0.1 < meta.tumor_patch[~label].mean() < 0.9, "some negatives have tumour at the border"

@pytest.mark.parametrize("name", ["crc100k", "bach", "sicapv2", "wsss4luad"])
def test_a_label_of_tumour_shows_tumour_and_no_other_does(painted, name):
    tumour = dict(crc100k=["TUM"], bach=["Invasive"], sicapv2=["G3", "G4", "G5"], wsss4luad=["tumor"])[name]
    benign = dict(crc100k=["ADI", "LYM", "MUS", "NORM"], bach=["Normal", "Benign"], sicapv2=["NC"], wsss4luad=["normal"])[name]
    z = painted[1][painted[1].name==name]
    has = z.classes.str.split().map(lambda c: bool(set(c) & set(MALIGNANT)))
    assert has[z.label.isin(tumour)].all() and not has[z.label.isin(benign)].any()

def test_copies_of_a_tile_are_alike_and_those_of_others_are_not(painted):
    out, df = painted
    z = df[(df.name=="lc25000") & (df.label=="colon_aca")]
    x = np.stack([np.asarray(Image.open(out/"lc25000"/f)).reshape(-1, 3).mean(0) for f in z.file])
    d, same = np.linalg.norm(x[:, None]-x[None], axis=-1), (z["index"].to_numpy()[:, None]//4==z["index"].to_numpy()//4)
    assert np.median(d[same & (d > 0)]) < 0.5*np.median(d[~same])

def test_cases_differ_more_than_images_of_a_case():
    colour = lambda case, k: paint_image("bach", "Benign", draw_case("bach", case, 0), np.random.default_rng(k))[0].reshape(-1, 3).mean(0)
    x = np.array([[colour(c, k) for k in range(3)] for c in range(6)])
    assert x.std(1).mean() < x.mean(1).std(0).mean()

def test_more_images_leave_the_first_as_they_are(painted, tmp_path):
    run_standins(str(tmp_path), **(FEW | dict(sets=["osteo"], train=8)))
    mine, other = tmp_path/"standins/osteo", painted[0]/"osteo"
    names = [p.relative_to(other) for p in other.rglob("*.jpg")]
    assert names and all((mine/n).read_bytes()==(other/n).read_bytes() for n in names)
    assert not np.array_equal(paint_numbered("osteo", "all", 0, 1).im, paint_numbered("osteo", "all", 0, 2).im)

def test_same_seed_same_bytes_with_any_number_of_workers(painted, tmp_path):
    run_standins(str(tmp_path), **(SOME | dict(workers=2)))
    assert hashes(tmp_path/"standins")==hashes(painted[0])

def test_a_second_run_repaints_nothing_and_other_parameters_leave_nothing(tmp_path):
    few = FEW | dict(sets=["osteo", "wsss4luad", "sicapv2"], train=1, val=1, test=1)
    run_standins(str(tmp_path), **few)
    out = tmp_path/"standins"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".jpg", ".png")}
    assert len(before)==3*(3+2+4)
    run_standins(str(tmp_path), **few)
    assert before=={p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".jpg", ".png")}
    (out/"osteo/Viable/stray.jpg").write_bytes(b"")
    run_standins(str(tmp_path), **(few | dict(sets=["osteo"], val=2)))
    assert len(list(out.rglob("*.jpg")))==3*4 and not list(out.glob("*/*.xlsx"))
    assert not [p for n in ("wsss4luad", "sicapv2") for p in (out/n).rglob("*")]

def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(painted, tmp_path):
    code = f"from pathgen.standins import run_standins; run_standins({str(tmp_path)!r}, **{SOME!r})"
    p = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    done, end = tmp_path/"standins/.done/batches", time.time()+120
    while not list(done.glob("[!.]*.json")) and time.time() < end: time.sleep(.02)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    kept = {f: f.stat().st_mtime_ns for f in done.glob("[!.]*.json")}
    assert 0 < len(kept) < 6, "killed in the middle"
    run_standins(str(tmp_path), **SOME)
    assert kept=={f: f.stat().st_mtime_ns for f in kept}, "what was done is not done again"
    assert hashes(tmp_path/"standins")==hashes(painted[0])

def test_unknown_and_empty_sets_are_refused(tmp_path):
    for sets in (["mhist"], []):
        with pytest.raises(PathgenError, match="standins.sets") as e: run_standins(str(tmp_path), **(FEW | dict(sets=sets)))
        assert "\n" not in str(e.value)

def test_a_label_that_cannot_be_shown_is_an_error_not_a_lie(monkeypatch):
    monkeypatch.setattr(standins, "shown", lambda *a, **k: 0.0)
    with pytest.raises(PathgenError, match="bach InSitu"): paint_image("bach", "InSitu", draw_case("bach", 0, 0), np.random.default_rng(0), (64, 48))

@pytest.mark.parametrize("name", ["lc_lung", "lc_colon", "crc100k", "skincancer", "pcam", "bach", "osteo", "wsss4luad", "sicapv2"])
def test_the_loaders_of_the_real_sets_read_them(painted, name):
    folder = "lc25000" if name.startswith("lc_") else name
    df = read_set(name, painted[0]/folder)
    assert df.attrs["standin"] and df.attrs["title"].endswith("(stand-in)")
    known = df[df.group!=""]
    assert (known.groupby("group").split.nunique()==1).all()
    assert len(df)==9*len(df.attrs["classes"]) and (len(known)==len(df)) == (name not in ("crc100k", "bach"))

QUIZ = dict(FEW, sets=["osteo"], train=1, val=1, test=1, questions_val=2, questions_tiny=3, questions_test=7)

@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    root = tmp_path_factory.mktemp("quiz")
    run_standins(str(root), **QUIZ)
    return root/"standins/pathmmu"

def test_pathmmu_has_the_published_form(quiz):
    d = json.loads((quiz/"data.json").read_text())
    assert list(d)==["PubMed", "SocialPath", "EduContent", "Atlas", "PathCLS"] and all(list(z)==["val", "test_tiny", "test"] for z in d.values())
    assert all([len(z[p]) for p in z]==[2, 3, 7] for z in d.values())
    for q in (q for z in d.values() for part in z.values() for q in part):
        assert list(q)==["No", "img", "question", "options", "answer", "explanation"] and len(q["img"])==68
        assert [o[:3] for o in q["options"]]==[f"{l}) " for l in "ABCDEFGH"[:len(q["options"])]] and len(set(o[3:] for o in q["options"]))==len(q["options"])
        assert q["answer"] in q["options"] + [o[0] for o in q["options"]] and "H&E" not in q["answer"]
        assert hashlib.sha256((quiz/"images"/q["img"]).read_bytes()).hexdigest()==q["img"][:-4]
    assert "Painted, not tissue" in json.loads((quiz/"standin.json").read_text())["note"]

def test_there_are_more_questions_than_images_and_no_image_is_in_two_parts(quiz):
    d = json.loads((quiz/"data.json").read_text())
    images = {p: {q["img"] for z in d.values() for q in z[p]} for p in ("val", "test_tiny", "test")}
    assert not images["val"] & images["test"] and not images["test_tiny"] & images["test"] and len(images["test"])==5*6 < 5*7
    assert {p.name for p in (quiz/"images").iterdir()}==set().union(*images.values())

def test_quirks_of_the_published_file_are_there():
    from pathgen.standins import published
    q = dict(question="Which?", options=["w", "x", "y", "z"], right=1)
    rows = [published(q, n, True) for n in range(60)]
    assert sum(len(r["options"])==3 for r in rows)==5 and sum(r["answer"]=="B" for r in rows)==5 and all(r["answer"][0] in "AB" for r in rows)
    assert all(r["options"]["ABCD".index(r["answer"][0])].endswith("x") for r in rows)

def blindfold(monkeypatch): monkeypatch.setattr(standins, "paint_asked", lambda *a: (np.zeros((8, 8, 3), np.uint8), "", {}))

def test_no_statement_and_no_letter_is_right_more_often_than_others(monkeypatch):
    blindfold(monkeypatch)
    asked = [(q["options"], q["right"]) for s in list(STEMS)[:4] for k in range(450) for q in sheet(s, "test", k, 1)[2]]
    assert np.ptp(np.bincount([r for _, r in asked])) <= 4, "letters"
    offered, right = {}, {}
    for options, r in asked:
        for n, o in enumerate(options):
            key = next((w for w in (" without ", " together ", "Neither") if w in o), o)
            offered[key] = offered.get(key, 0)+1
            right[key] = right.get(key, 0)+(n==r)
    for key, n in offered.items():
        p = right[key]/n
        assert abs(p-.25) < 4*(.25*.75/n)**.5, f"{key} is right in {p:.2f} of {n}"

def test_the_letter_does_not_go_with_the_kind_of_question(monkeypatch):
    blindfold(monkeypatch)
    seen = {}
    for k in range(96):
        for q in sheet("Atlas", "test", k, 1)[2]: seen.setdefault(q["question"], []).append(q["right"])
    assert all(max(np.bincount(r, minlength=4)) < .55*len(r) for r in seen.values() if len(r) > 15)

def test_what_is_right_is_what_was_painted():
    from pathgen.findings import claims
    from pathgen.standins import borne_out, statements, tissue_for
    rng = np.random.default_rng(4)
    for kind in ("tissue", "growth", "besides", "pair")*8:
        drawn, right = statements(kind, rng), int(rng.integers(4))
        *_, truth = tissue_for([([c for _, c in drawn], right)], rng)
        assert [borne_out([c for _, c in drawn], k, truth) for k in range(4)]==[k==right for k in range(4)]
        for text, what in drawn: assert {k: v for k, v in claims(text).items() if k in what}==what, text

def test_more_questions_leave_the_first_as_they_are():
    few, many = (sheets(dict(val=n), 0) for n in (12, 48))
    assert few[0]["last"]==9 and many[0]["last"]==15 and sum(i["last"]-i["first"] for i in many)==5*36
    a, b = (sheet("PathCLS", "val", 4, 0) for _ in range(2))
    assert np.array_equal(a[0], b[0]) and a[2]==b[2]
    assert not np.array_equal(a[0], sheet("PathCLS", "val", 4, 1)[0])

def test_no_questions_no_folder(painted): assert not list((painted[0]/"pathmmu").rglob("*"))
