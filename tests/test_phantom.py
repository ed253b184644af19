"The phantom: files that open, truth that fits, the same bytes from the same seed."
import hashlib, json
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import paint
from pathgen.core import PathgenError
from pathgen.findings import claims
from pathgen.paint import ARCHITECTURE, MALIGNANT, ORGANS, attributes, findings_of, paint_patch
from pathgen.phantom import FAULTS, microscopy, run_phantom, slide_items

FAULTY = dict(duplicates=0.1, broken=0.1, tiny=0.1, wordless=0.1, not_histology=0.1)
ARGS = dict(seed=3, workers=1, max_failed=0.0, organs=["colon", "prostate"], patients=1, slides_per_patient=1,
            benign_share=0.5, slide_px=2688, slide_mpp=0.25, pairs_pathcap=20, pairs_quilt=30, pairs_openpath=20,
            misaligned_pathcap=0.0, misaligned_quilt=0.5, misaligned_openpath=0.5, **FAULTY)

def hashes(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*")) if p.is_file()}

@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    run_phantom(str(root), **ARGS)
    return root / "phantom"

def truths(phantom): return [json.loads(p.read_text()) for p in sorted((phantom / "truth").glob("*.json"))]

def test_slides_open_as_aperio(phantom):
    import openslide
    paths = sorted((phantom / "slides").glob("*.svs"))
    assert len(paths) == 2
    for p in paths:
        s = openslide.OpenSlide(p)
        assert s.properties["openslide.vendor"] == "aperio"
        assert float(s.properties["openslide.mpp-x"]) == 0.25 and s.properties["openslide.objective-power"] == "40"
        assert s.level_dimensions == ((2688, 2688), (672, 672), (168, 168))

def test_tiles_are_read_alike_by_openslide_and_tifffile(phantom):
    import openslide, tifffile
    p = next((phantom / "slides").glob("*.svs"))
    a = np.asarray(openslide.OpenSlide(p).read_region((700, 900), 0, (500, 300)).convert("RGB")).astype(int)
    b = tifffile.imread(p, level=0, series=0)[900:1200, 700:1200].astype(int)
    assert np.abs(a - b).mean() < 2

def test_truth_fits_the_image(phantom):
    import tifffile
    for t in truths(phantom):
        ids = np.asarray(Image.open(phantom / "truth" / f"{t['slide_id']}.png"))
        assert ids.shape == (84, 84) and set(np.unique(ids)) - {0} <= {r["id"] for r in t["regions"]}
        im = tifffile.imread(phantom / "slides" / f"{t['slide_id']}.svs", level=0, series=0)
        art = np.asarray(Image.open(phantom / "truth" / f"{t['slide_id']}.artefacts.png"))
        dark = im.reshape(84, 32, 84, 32, 3).min((1, 3)).min(-1) < 190
        assert dark[(ids > 0) & (art == 0)].mean() > 0.7
        assert dark[(ids == 0) & (art != 2)].mean() < 0.12

def test_what_was_painted_fits_the_image(phantom):
    import tifffile
    from pathgen.findings import CELLS, PARTS
    light, seen = {}, 0
    for t in truths(phantom):
        region, part, cells = np.moveaxis(np.asarray(Image.open(phantom / "truth" / f"{t['slide_id']}.painted.png")), -1, 0)
        ids = np.asarray(Image.open(phantom / "truth" / f"{t['slide_id']}.png"))
        on = (part == PARTS["ground"]) & (ids > 0)
        assert (region[on] == ids[on]).mean() > 0.9 and set(np.unique(region)) - {0} <= {r["id"] for r in t["regions"]}
        assert ((part == 0) == (region == 0)).all()
        im = tifffile.imread(phantom / "slides" / f"{t['slide_id']}.svs", level=0, series=0)
        mid = im.reshape(84, 32, 84, 32, 3)[:, 12:20, :, 12:20].mean((1, 3, 4))
        for k, n in PARTS.items(): light.setdefault(k, []).extend(mid[part == n])
        red = (cells & CELLS["hemorrhage"]) > 0
        seen += red.sum() + ((cells & CELLS["lymphocytes"]) > 0).sum()
    assert np.mean(light["lumen"]) > np.mean(light["epithelium"]) + 20 and seen > 50

def test_a_pair_is_the_same_whatever_was_painted_before():
    first = paint.nuclei("tumour", 0.5, 1.5, 0.0, -0.0, 0.0).h.copy()
    paint.nuclei.cache_clear()
    paint.nuclei("tumour", 0.5, 1.5, 0.0, 0.0, 0.0)
    assert (paint.nuclei("tumour", 0.5, 1.5, 0.0, -0.0, 0.0).h == first).all()

def test_reports_say_what_was_painted(phantom):
    for t in truths(phantom):
        text = (phantom / "reports" / f"{t['slide_id'][:12]}.txt").read_text()
        body = text.split("Microscopic Description:")[1].split("\n\n")[0]
        read = claims(body)
        planned = {c: v for c, v in t["report"]["findings"].items() if c not in ("malignancy", "benign")}
        assert {c: read.get(c) for c in planned} == planned
        regions = {r["id"]: r for r in t["regions"]}
        for c, v in planned.items():
            have = [regions[i]["findings"].get(c) for i in t["report"]["regions"]]
            assert (True in have) if v else all(h is False for h in have)
        assert t["report"]["measurements"] > 0 and "cm" in text

def test_benign_patients_have_no_lesion(phantom):
    kinds = [{r["region_class"] for r in t["regions"]} for t in truths(phantom)]
    benign = [t["benign"] for t in truths(phantom)]
    assert sorted(benign) == [False, True]
    for k, b in zip(kinds, benign): assert bool(k & set(MALIGNANT)) != b

def test_pairs_have_the_published_forms_and_the_stated_faults(phantom):
    init = phantom / "init"
    truth = pd.read_parquet(init / "truth.parquet")
    assert len(truth) == 70 and set(truth.source) == {"pathcap", "quilt", "openpath"}
    assert not truth[truth.source == "pathcap"].misaligned.any() and truth.misaligned.any()
    cap = json.loads((init / "pathcap" / "pathcap.json").read_text())
    assert {"image", "caption"} <= set(cap[0]) and len(cap) == 20
    quilt = pd.read_csv(init / "quilt" / "quilt_1M_lookup.csv", index_col=0)
    assert {"caption", "image_path", "subset", "split", "pathology", "roi_text", "noisy_text", "corrected_text",
            "med_umls_ids", "magnification", "height", "width"} <= set(quilt.columns)
    for r in truth.itertuples():
        p = init / r.source / "images" / r.image
        if r.broken == "broken":
            with pytest.raises(OSError): Image.open(p).load()
        else: assert Image.open(p).size == ((24, 24) if r.broken == "tiny" else (224, 224))
    assert set(truth.broken.dropna()) <= set(FAULTS) and truth.broken.notna().mean() > 0.2

def test_misaligned_captions_deny_their_image(phantom):
    truth = pd.read_parquet(phantom / "init" / "truth.parquet")
    own = [claims(r.caption).get(ARCHITECTURE[r.region_class]) for r in truth.itertuples() if pd.isna(r.broken)]
    bad = truth[truth.broken.isna()].misaligned.to_numpy()
    own = np.array([o is True for o in own])
    assert own[~bad].all() and not own[bad].any()

def test_same_seed_same_bytes_with_any_number_of_workers(phantom, tmp_path):
    run_phantom(str(tmp_path), **(ARGS | dict(workers=2)))
    assert hashes(tmp_path / "phantom") == hashes(phantom)

def test_a_second_run_repaints_nothing(phantom):
    before = {p: p.stat().st_mtime_ns for p in sorted(phantom.rglob("*.svs"))}
    run_phantom(str(phantom.parent), **ARGS)
    assert before == {p: p.stat().st_mtime_ns for p in before}

def test_nuclei_grow_and_darken_with_their_attributes():
    base = dict(ratio=1.05, dark=0.0, pleo=0.0, nucleoli=0.0, mitoses=0.0, necrosis=0, mucin=0, lymph=0.0,
                stroma="desmoplastic", hemorrhage=0)
    look = lambda **k: paint_patch("carcinoma_poor", "colon", base | k, 448, 0.25, np.random.default_rng(0))[0].mean()
    assert look(dark=0.8) < look() - 3

def test_a_region_without_tumour_speaks_of_no_tumour():
    for c in ("normal_glands", "mucus", "necrosis", "lymphocytes"):
        for k in range(40):
            rng = np.random.default_rng(k)
            f = findings_of(c, attributes(c, list(ORGANS)[k % 6], rng))
            text = " ".join(microscopy(dict(region_class=c, findings=f), rng)[0]).lower()
            assert not any(w in text for w in ("tumour", "neoplastic", "lesion"))

def test_unknown_organ_and_tiny_slide_are_refused():
    with pytest.raises(PathgenError, match="organs"): slide_items(["spleen"], 1, 1, 0.0, 2688, 0.25, 0)
    with pytest.raises(PathgenError, match="slide_px"): slide_items(["colon"], 1, 1, 0.0, 512, 0.25, 0)

def test_what_other_parameters_left_is_removed(tmp_path):
    few = ARGS | dict(pairs_pathcap=4, pairs_quilt=4, pairs_openpath=4)
    run_phantom(str(tmp_path), **(few | dict(organs=["colon", "stomach"])))
    slides, pairs = run_phantom(str(tmp_path), **(few | dict(organs=["colon"], pairs_quilt=2)))
    out = tmp_path / "phantom"
    assert [p.stem for p in (out / "slides").glob("*.svs")] == slides.slide_id.tolist()
    assert [p.stem for p in (out / "reports").glob("*.txt")] == slides.patient_id.tolist()
    assert len(list((out / "init" / "quilt" / "images").glob("*.jpg"))) == 2
