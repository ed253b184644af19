"Stand-ins of the whole-slide sets: published layouts, labels that are painted, truth that fits, the same bytes."
import hashlib, json
from xml.etree import ElementTree as ET
import numpy as np, pandas as pd, pytest
from pathgen import standin_slides
from pathgen.core import PathgenError
from pathgen.findings import PARTS, Truth
from pathgen.sets import SLIDE_CLASSES, read_slide_set, split_slides
from pathgen.standin_slides import (EXTENT, GROUPS, KINDS, MPP, SECTION, _dealt, _stage, paint_slide, run_standin_slides,
                                    seen, slide_items)

ARGS = dict(seed=3, workers=1, max_failed=0.0, camelyon16_train=5, camelyon16_test=3, camelyon17_patients=1,
            camelyon17_nodes=4, bracs_train=3, bracs_val=3, bracs_test=3, slide_px=1792)

def hashes(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*")) if p.is_file() and ".done" not in p.parts}

def item(kind, name, set="camelyon17"):
    ext = ".svs" if set == "bracs" else ".tif"
    return dict(key=f"{set}/training/c/{name}{ext}", slide_id=name, set=set, kind=kind, label=kind, centre=0, px=1792, seed=3)

def paint(root, kind, name, set="camelyon17"):
    i = item(kind, name, set)
    paint_slide(i, root / i["key"])
    return root / i["key"], Truth.load(root / "truth", name)

def lesions(t): return [r["id"] for r in t.info["regions"] if r["lesion"]]

@pytest.fixture(scope="module")
def few(tmp_path_factory):
    root = tmp_path_factory.mktemp("slides")
    return root, {k: paint(root, k, k) for k in ("negative", "itc", "micro", "macro")} | {
        k: paint(root, k, k, "bracs") for k in ("N", "UDH", "ADH")}

def test_slides_open_with_a_resolution_and_a_pyramid(few):
    import openslide
    for kind, vendor in (("micro", "generic-tiff"), ("ADH", "aperio")):
        s = openslide.OpenSlide(few[1][kind][0])
        assert s.properties["openslide.vendor"] == vendor and float(s.properties["openslide.mpp-x"]) == MPP
        assert s.level_dimensions == ((1792, 1792), (448, 448), (112, 112))

def test_a_lesion_is_where_the_label_says_that_there_is_one(few):
    for kind, (_, t) in few[1].items():
        assert bool(lesions(t)) == (kind not in ("negative", *GROUPS["BT"]))
        assert t.region_fraction(0, 0, 1792, lesions(t)) > 0 or not lesions(t)

def test_the_extent_of_a_metastasis_is_that_of_its_class(few):
    mm = {k: MPP * 16 / 1000 * np.sqrt(np.isin(t.mask, lesions(t)).sum()) for k, (_, t) in few[1].items()}
    scale = 1792 * MPP / 1000 / SECTION
    assert mm["itc"] < mm["micro"] < mm["macro"] and mm["negative"] == 0
    assert mm["itc"] < 0.6 * scale and mm["micro"] < 2 * scale and mm["macro"] > 1.4 * scale
    for kinds in EXTENT.values():
        for k, (least, most) in kinds.items():
            assert 0 < least < most and (k != "micro" or 0.2 <= least < most <= 2) and (k != "itc" or most <= 0.2)

def test_what_is_painted_as_tumour_is_dark_and_where_the_truth_says(few):
    import tifffile
    path, t = few[1]["micro"]
    im = tifffile.imread(path, key=0).reshape(112, 16, 112, 16, 3).mean((1, 3, 4))
    where = np.isin(t.mask, lesions(t))
    assert (t.painted[..., 1][where] == PARTS["epithelium"]).mean() > 0.7
    assert im[where].mean() < im[t.mask == 1].mean() - 20

def test_the_outline_of_asap_is_that_of_the_truth(few):
    from skimage.draw import polygon2mask
    path, t = few[1]["macro"]
    xml = path.parent.parent / "lesion_annotations/macro.xml"
    assert not (xml.parent / "negative.xml").exists()
    mask = np.zeros(t.mask.shape, bool)
    for a in ET.parse(xml).iter("Annotation"):
        at = [(float(c.get("Y")), float(c.get("X"))) for c in a.iter("Coordinate")]
        mask ^= polygon2mask(mask.shape, np.array(at) / 16 - 0.5)
    where = np.isin(t.mask, lesions(t))
    assert (mask & where).sum() / (mask | where).sum() > 0.95

def test_a_lesion_that_is_hidden_or_was_not_painted_is_not_seen():
    ids, none = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    ids[2:6, 2:6] = 8
    r = dict(id=8, name="invasive", epithelium=0.5)
    assert seen(ids, [r], none, "macro") and seen(ids, [], none, "negative")
    assert not seen(ids, [r | dict(epithelium=0.0)], none, "macro")
    assert not seen(ids, [r], np.full((9, 9), 2, np.uint8), "macro") and not seen(ids, [r], none, "micro")

def test_kinds_are_dealt_near_their_shares():
    rng = np.random.default_rng(0)
    for n in (4, 5, 12, 100):
        kinds = _dealt(n, dict(a=0.45, b=0.15, c=0.17, d=0.23), rng)
        assert len(kinds) == n and set(kinds) == set("abcd") and (n < 100 or kinds.count("a") == 45)
    assert len(_dealt(2, dict(a=0.6, b=0.2, c=0.2), rng)) == 2

def test_stages_of_patients_are_those_of_their_nodes():
    assert [_stage(k.split()) for k in ("negative", "negative itc", "micro itc", "macro itc", "macro micro micro macro")] \
        == ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"]

def test_patients_of_bracs_are_in_one_part_and_every_class_is_in_each():
    items = pd.DataFrame(slide_items((40, 30), (4, 3), (36, 12, 24), 2240, 0)["bracs"])
    assert (items.groupby("patient").part.nunique() == 1).all() and items.slide_id.is_unique
    assert items.groupby("part").kind.nunique().eq(7).all() and set(items.kind) <= set(KINDS)

@pytest.mark.parametrize("px, nodes", [(2241, 3), (512, 3), (2240, 6)])
def test_sizes_that_cannot_be_painted_are_refused(px, nodes):
    with pytest.raises(PathgenError, match="standin_slides"): slide_items((5, 3), (1, nodes), (3, 3, 3), px, 0)

def blank(item, path):
    "Stands for `paint_slide` where names and labels alone are looked at."
    truth = path.parents[item["key"].count("/")] / "truth" / f"{item['slide_id']}.json"
    for p in (path, truth):
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(item["kind"])

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(standin_slides, "paint_slide", blank)
        yield root, run_standin_slides(str(root), **ARGS)

def test_the_loaders_of_the_published_sets_read_what_was_painted(run):
    root, df = run
    for name, classes in SLIDE_CLASSES.items():
        t = read_slide_set(name, root / "standin_slides" / name)
        mine = df[df.set == name].set_index("slide_id")
        assert t.attrs["standin"] and set(t.slide_id) == set(mine.index) and set(t.label) == set(classes)
        for r in t.itertuples():
            kind = mine.kind[r.slide_id]
            group = next((c for c, g in zip(SLIDE_CLASSES["bracs"], GROUPS.values()) if kind in g), None)
            assert r.label == dict(camelyon16="tumor" if KINDS[kind] else "normal", camelyon17=kind, bracs=group)[name]
    assert set(split_slides(read_slide_set("camelyon17", root / "standin_slides/camelyon17"), 0.1, 0).split) == {"train", "val", "test"}

def test_a_second_run_repaints_nothing_and_what_it_does_not_need_goes(run):
    root, _ = run
    out = root / "standin_slides"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.tif")} | {p: p.stat().st_mtime_ns for p in out.rglob("*.svs")}
    was = hashes(out)
    run_standin_slides(str(root), **ARGS)
    assert hashes(out) == was and all(p.stat().st_mtime_ns == t for p, t in before.items())
    df = run_standin_slides(str(root), **(ARGS | dict(camelyon17_nodes=3)))
    assert {p.stem for p in before if p.exists()} == set(df.slide_id) == {p.stem for p in (out / "truth").glob("*.json")}
    assert len(read_slide_set("camelyon17", out / "camelyon17")) == 15

def test_a_slide_has_the_same_bytes_wherever_and_whenever_it_is_painted(few, tmp_path):
    paint(tmp_path, "itc", "itc")
    new = hashes(tmp_path)
    assert new == {k: v for k, v in hashes(few[0]).items() if k in new} and len(new) == 6

def test_a_spot_beside_the_tissue_paints_nothing():
    from types import SimpleNamespace
    from pathgen.standin_slides import GERMINAL, sheet
    r, plane = np.random.default_rng(0), lambda: np.full((64,64), 7, np.uint8)
    cv = SimpleNamespace(tissue=np.zeros((64,64), bool), cells=[], e=plane(), h=plane())
    sheet(cv, np.ones((30,30), bool), 4, 4, GERMINAL, r)
    assert (cv.e==7).all() and (cv.h==7).all() and cv.cells==[]
