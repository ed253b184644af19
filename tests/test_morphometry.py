"Morphometry on drawn patches, and on real tissue where ../shared/data is at hand."
import os
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from pathgen.core import PathgenError
from pathgen.findings import CONCEPTS, TISSUE_SOURCES, claims
from pathgen import morphometry as mm

DATA = Path(__file__).resolve().parents[2]/"shared"/"data"
CRC = DATA/"patches"/"crc_val_he_7k"
real = pytest.mark.skipif(not CRC.exists(), reason=f"real patches are not at hand: {CRC} is absent")

def draw(nuclei, px=336, um=.5, matrix=mm.REFERENCE, dark=1.4, holes=(), seed=0):
    "Discs (y, x, radius in µm) of haematoxylin on eosin."
    y, x = np.mgrid[:px,:px]*um
    g = np.random.default_rng(seed)
    h, e = np.full((px,px), .05), .4+.04*g.standard_normal((px,px))
    for cy,cx,r in holes:
        m = (y-cy)**2+(x-cx)**2 < r*r
        h[m] = e[m] = 0
    for cy,cx,r in nuclei: h[(y-cy)**2+(x-cx)**2 < r*r] = dark
    return (243*np.exp(-np.stack([h,e], -1).clip(0)@np.array(matrix))).astype(np.uint8)

GRID = [(y,x,4.) for y in range(12,160,18) for x in range(12,160,18)]

@pytest.mark.parametrize("matrix", [mm.REFERENCE, ((.62,.70,.33),(.14,.86,.43)), ((.68,.66,.25),(.25,.83,.48))])
def test_nuclei_are_counted_whatever_the_dyes(matrix):
    m = mm.measure(draw(GRID, matrix=matrix), .5)
    assert m["nuclei_mm2"] == pytest.approx(len(GRID)/.168**2, rel=.05)
    assert m["area_50"] == pytest.approx(np.pi*16, rel=.2)

@pytest.mark.parametrize("um,px", [(.25,672),(.5,336),(1.,168)])
def test_areas_are_in_micrometres(um, px):
    m = mm.measure(draw(GRID, px=px, um=um), um)
    assert m["area_50"] == pytest.approx(np.pi*16, rel=.25)

def test_turning_a_patch_changes_little():
    im = draw(GRID[:40], holes=[(120,120,25)])
    a, b = mm.measure(im, .5), mm.measure(np.ascontiguousarray(im.transpose(1,0,2)[:,::-1]), .5)
    for k in ("nuclei_mm2","area_50","share_white","share_nuclei","white_largest","dens_50","coherence" if "coherence" in a else "rest_coherence"):
        assert a[k] == pytest.approx(b[k], rel=.06, abs=.02), k

def test_enlarging_nuclei_is_seen():
    small, large = (mm.measure(draw([(y,x,r) for y,x,_ in GRID]), .5) for r in (3,6))
    assert large["area_50"] > 2.5*small["area_50"] and large["large_share"] > .9 > small["large_share"]

def test_stroma_has_a_direction():
    y, x = np.mgrid[:336,:336]
    lines = (200+30*np.sin(x/3.))[...,None].repeat(3,2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(170, 231, (336,336,1)).repeat(3,2).astype(np.uint8)
    assert mm.measure(lines, .5)["alignment"] > .8 > .4 > mm.measure(noise, .5)["alignment"]

@pytest.mark.parametrize("im", [np.full((336,336,3), 255, np.uint8), np.zeros((64,64,3), np.uint8),
                                np.full((224,224,3), (30,60,200), np.uint8)])
def test_measures_are_finite_on_anything(im):
    m = mm.measure(im, .5)
    assert all(np.isfinite(v) for v in m.values())
    assert isinstance(mm.observe(m), dict)

@pytest.mark.parametrize("mpp", [None, 0, -1, float("nan")])
def test_no_measure_without_a_scale(mpp):
    with pytest.raises(PathgenError, match="mpp override"): mm.measure(draw(GRID), mpp)

def test_pen_does_not_pass_for_a_dye():
    im = draw(GRID)
    inked = im.copy()
    inked[:80] = (35,60,160)
    a, b = mm.estimate_stains([im]), mm.estimate_stains([inked])
    assert np.allclose(a.matrix, b.matrix, atol=.06)

def test_the_readers_fit_the_measures_and_the_lexicon():
    names, rules, net = set(mm.measure(draw(GRID), .5)), mm.load_rules(), mm.load_net()
    assert set(rules) <= set(CONCEPTS) and set(net["concepts"]) == set(rules)
    assert set(net["measures"]) == names
    for c,r in rules.items():
        assert set(r["measures"]) <= names, c
        assert r["absent"] <= r["present"] and r["drop"] <= r["add"], c
    assert mm.rules_file().stat().st_size < 1e6

def test_the_trees_vote_like_the_library_that_grew_them():
    g = np.random.default_rng(0)
    x = g.normal(size=(300, 7)).round(2)
    y = (x[:,2] > 0) & (x[:,5] + x[:,0] > .3)
    model = mm._boost(x, y)
    rule = mm.as_arrays(mm._rule(model, list("abcdefg"), np.zeros(7)))
    used = x[:,["abcdefg".index(k) for k in rule["measures"]]]
    votes = mm._vote(rule, used)
    assert np.abs(votes - model.decision_function(x)).max() < .01 # what rounding to four digits leaves
    assert ((votes > 0) == y).mean() > .95

def test_two_readers_together_stand_between_them():
    m = mm.measure(draw(GRID), .5)
    net, first, both = mm.load_net(), mm.chances(m), mm.second_chances(m)
    z = np.array([np.clip((mm._level(k, m[k])-c)/s, -3, 3) for k,(c,s) in net["measures"].items()])
    own = mm.logistic(mm._net_sums(net, z))
    for c,p in zip(net["concepts"], own): assert min(p, first[c])-1e-6 <= both[c] <= max(p, first[c])+1e-6

def test_limits_keep_what_they_promise():
    g = np.random.default_rng(0)
    y = g.random(4000) < .3
    p = mm.logistic(np.where(y, 1., -1.) + g.normal(0, 1.2, 4000))
    cut = mm._lowest(p, y, .9)
    assert y[p >= cut].mean() >= .9 > y[p >= cut-.1].mean()
    assert y[p <= mm._highest(p, y, .03)].mean() <= .03
    assert mm._lowest(g.random(4000), y, .9) > 1 and mm._highest(g.random(4000), y, .03) < 0 # chance alone claims nothing

def test_what_is_said_is_what_was_found():
    g = np.random.default_rng(1)
    for i in range(200):
        said = {str(c):bool(g.random() < .8) for c in g.choice(list(mm.PHRASES), g.integers(1,10), replace=False)}
        source = sorted(set(TISSUE_SOURCES.values()))[i%23]
        assert claims(mm.describe_findings(said, source, i)) == said

def crc(kind):
    return {p.stem:np.asarray(Image.open(p).convert("RGB")) for p in sorted((CRC/kind).glob("*.png"))}

SHOWN = dict(ADI="adipose", LYM="lymphocytes", MUS="smooth_muscle") # what readers fitted to the phantom tell on real tissue
WRONG = dict(ADI=("malignancy","solid_growth","mitoses","mucin"), LYM=("adipose","smooth_muscle"), MUC=("solid_growth","adipose"),
             MUS=("solid_growth","adipose","mucin"), NORM=("solid_growth","smooth_muscle"), STR=("adipose","solid_growth"),
             TUM=("adipose","smooth_muscle"))

@real
@pytest.mark.parametrize("kind", SHOWN)
def test_real_fat_lymphocytes_and_muscle_are_named(kind):
    c = SHOWN[kind]
    assert all(mm.second_chances(mm.measure(im, .5))[c] >= mm.load_rules()[c]["present"] for im in crc(kind).values())

@real
def test_real_tissue_is_seldom_called_what_it_cannot_be():
    bad = [(k,c) for k in WRONG for im in crc(k).values() for c in WRONG[k] if mm.observe(mm.measure(im, .5)).get(c)]
    assert len(bad) <= 1, bad

@real
@pytest.mark.xfail(reason="the readers are fitted to the phantom: half of the real tumour and mucus is not recognised yet", strict=True)
@pytest.mark.parametrize("kind,concept", [("TUM","malignancy"), ("MUC","mucin")])
def test_real_tumour_and_mucus_are_named(kind, concept):
    assert all(mm.observe(mm.measure(im, .5)).get(concept) for im in crc(kind).values())

@real
def test_real_tissue_is_measured_plausibly():
    m = {k:[mm.measure(im, .5) for im in crc(k).values()] for k in WRONG}
    worst = lambda k,n,f: f(v[n] for v in m[k])
    assert worst("ADI","share_white",min) > .5 > max(worst(k,"share_white",max) for k in ("TUM","STR","MUS"))
    assert worst("LYM","lymphoid_share",min) > .4 > worst("TUM","lymphoid_share",max)
    assert worst("MUS","spindle_share",min) > worst("LYM","spindle_share",max)
    assert worst("LYM","nuclei_mm2",min) > worst("STR","nuclei_mm2",max)
