"Choosing patches: the rules on synthetic features, the stage on painted slides, odd inputs, speed."
import shutil, time
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen.clip import build_clip, save_clip
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.select import (COLUMNS, chance, choose, cluster, corners, draw, drop_probability,
    in_context, inside, retrieve, run_select, shown, slide_items, thin, zscore)
from pathgen.wsi import read_bag, write_bag
from test_embed import paint_slide

TOP = dict(report=64, attribute=64, cluster=256)

def unit(a): return (a/np.linalg.norm(a, axis=1, keepdims=True)).astype("float32")

def blobs(n, dim=64, kinds=8, noise=.1, seed=0):
    "Features around a few directions, names, and the kind of each."
    r = np.random.default_rng(seed)
    towards, kind = unit(r.normal(size=(kinds,dim))), r.integers(0, kinds, n)
    f = unit(towards[kind] + noise*r.normal(size=(n,dim)))
    return [f"S_{i%141*672}_{i//141*672}" for i in range(n)], f, kind, towards

def prompts(towards, report=(0,), attribute=(1,2)):
    return {o:([f"{o} {i}" for i in ks], towards[list(ks)]) for o,ks in (("report",report),("attribute",attribute))}

def by_id(df): return df.drop(columns="row").set_index("patch_id").sort_index()

# -- the rules

def test_retrieval_is_fair_and_blind_to_the_order_of_prompts():
    _,f,kind,towards = blobs(800)
    z = zscore(f@towards[:4].T)
    got = retrieve(z, 40)
    assert got.prompt.value_counts().max() - got.prompt.value_counts().min() <= 1
    assert (kind[got.row] == got.prompt).all()
    back = retrieve(z[:,::-1], 40)
    assert set(back.row) == set(got.row)
    assert dict(zip(back.row, 3-back.prompt)) == dict(zip(got.row, got.prompt))

def test_a_loud_prompt_does_not_take_every_place():
    z = np.random.default_rng(0).normal(size=(500,2))
    z[:100,0] += 20 # a hundred outliers of the first prompt
    assert (retrieve(z, 60).prompt == 1).sum() >= 25

def test_a_patch_wanted_twice_takes_one_place():
    z = np.array([[3,3],[2,1],[1,2],[0,0]], float)
    got = retrieve(z, 3)
    assert sorted(got.row) == [0,1,2] and got.row[0] == 0

def test_a_patch_below_average_is_not_found():
    z = zscore(np.random.default_rng(0).normal(size=(30,1)))
    assert set(retrieve(z, 30).row) == set((z[:,0] >= 0).nonzero()[0])

def test_draw_reaches_every_cluster_and_fills_up():
    labels = np.repeat([0,1,2], [1000,10,1])
    rows = draw(labels, chance(range(1011), 0, "draw"), 60)
    n = pd.Series(labels[rows]).value_counts()
    assert n[2] == 1 and n[1] == 10 and n[0] == 49
    assert len(set(rows)) == 60
    assert len(draw(labels, chance(range(1011), 0, "draw"), 5000)) == 1011
    assert len(draw(labels, chance(range(1011), 0, "draw"), 0)) == 0

def test_draw_is_uniform_within_a_cluster():
    labels = np.zeros(20, int)
    n = np.zeros(20)
    for seed in range(2000): n[draw(labels, chance(range(20), seed, "draw"), 5)] += 1
    assert abs(n/2000-.25).max() < .05

def test_chance_is_uniform():
    u = chance(range(20_000), 0, "x")
    assert abs(np.histogram(u, 10, (0,1))[0]-2000).max() < 200
    assert 0 <= u.min() and u.max() < 1

def test_cluster_is_seeded_and_separates():
    _,f,kind,_ = blobs(1000, noise=.02)
    a = cluster(f, seed=3)
    assert (a == cluster(f, seed=3)).all()
    assert len(set(a)) > 20 and pd.crosstab(a, kind).max(axis=1).sum() == 1000

def test_clusters_do_not_hang_on_the_number_of_threads():
    import faiss
    _,f,_,_ = blobs(3000)
    n, labels = faiss.omp_get_max_threads(), []
    for k in (1,2,n):
        faiss.omp_set_num_threads(k)
        labels.append(cluster(f))
    assert all((l == labels[0]).all() for l in labels)

def test_a_better_reason_survives():
    f = np.repeat(np.eye(1,4,dtype="f4"), 3, axis=0)
    for seed in range(20): assert thin(f, chance("abc", seed, "thin"))[0].tolist() == [True,False,False]

def test_a_dropped_patch_drops_nobody():
    angle = np.arccos(.95)
    f = np.array([[np.cos(a),np.sin(a)] for a in (0,angle,2*angle)], "f4")
    kept,near,s = thin(f, np.array([.0,.0,.0]), threshold=.9)
    assert kept.tolist() == [True,False,True] # the third resembles only the second, which is gone
    assert near.tolist() == [-1,0,0] and s[2] < .9

@pytest.mark.parametrize("gamma", (.5,1,3))
def test_dropping_follows_the_curve(gamma):
    s = .96
    f = np.array([[1,0],[s,np.sqrt(1-s*s)]], "f8")
    n = np.mean([not thin(f, chance("ab", i, "thin"), .88, gamma)[0][1] for i in range(3000)])
    assert abs(n-drop_probability(s, .88, gamma)) < .03

def test_everything_is_blind_to_the_order_of_the_bag():
    ids,f,_,towards = blobs(900, noise=.05)
    want = by_id(choose(ids, f, prompts(towards), TOP))
    assert not want.kept.all() and want.origins.nunique() > 3
    for seed in range(3):
        p = np.random.default_rng(seed).permutation(900)
        df = choose([ids[i] for i in p], f[p], prompts(towards), TOP)
        pd.testing.assert_frame_equal(by_id(df), want)
        assert [ids[p[r]] for r in df.row] == df.patch_id.tolist()

def test_limits_of_the_paper():
    ids,f,_,towards = blobs(3000)
    df = choose(ids, f, prompts(towards), TOP)
    n = {o:df.origins.str.contains(o).sum() for o in TOP}
    assert n == TOP and 256 <= len(df) <= 384
    assert (df.score.notna() == df.origins.str.contains("report|attribute")).all()
    assert len(choose(ids, f, prompts(towards), TOP, max_patches=100)) == 100

def test_who_is_similar_to_whom():
    ids,f,_,towards = blobs(600, noise=.03)
    df = choose(ids, f, prompts(towards), TOP)
    kept, at = set(df.patch_id[df.kept]), dict(zip(ids, range(600)))
    gone = df[~df.kept]
    assert len(gone) and set(gone.similar_to) <= kept and (gone.similarity > .88).all()
    real = [f[at[a]]@f[at[b]] for a,b in zip(gone.patch_id, gone.similar_to)]
    assert np.abs(real-gone.similarity).max() < 1e-4

def test_context_is_the_mean_of_the_patches_that_touch():
    z = np.arange(9.)[:,None]
    coords = np.stack(np.meshgrid(range(3), range(3)), -1).reshape(-1,2)*100
    got = in_context(z, coords, 100, 1.)[:,0]
    assert got[4] == 4 and got[0] == np.mean([1,3,4]) and got[1] == np.mean([0,2,3,4,5])
    assert (in_context(z, coords, 100, 0.) == z).all() and (in_context(z, coords, 50, .7) == z).all()

def test_context_finds_the_lesion_in_noise():
    ids,_,_,towards = blobs(900, kinds=2)
    lesion = (corners(ids) < 672*10).all(1)
    noise = np.random.default_rng(0).normal(size=(900,64))
    f = unit(np.where(lesion[:,None], towards[0], towards[1]) + noise)
    def share(c):
        df = choose(ids, f, prompts(towards, attribute=()), TOP, context=c)
        return lesion[df.row[df.origins.str.contains("report")]].mean()
    assert share(.5) > share(0.)

# -- odd slides

@pytest.mark.parametrize("n", (0,1,2,3,40))
def test_few_patches(n):
    ids,f,_,towards = blobs(n)
    df = choose(ids, f, prompts(towards), TOP)
    assert len(df) == n and df.patch_id.is_unique

def test_no_report_no_prompt_at_all():
    ids,f,_,towards = blobs(500)
    df = choose(ids, f, prompts(towards, report=()), TOP)
    assert not df.origins.str.contains("report").any() and df.origins.str.contains("attribute").sum() == 64
    df = choose(ids, f, prompts(towards, report=(), attribute=()), TOP)
    assert set(df.origins) == {"cluster"} and len(df) == 256 and (df.prompt == "").all()

def test_constant_features():
    ids,_,_,towards = blobs(500)
    f = np.tile(towards[:1], (500,1))
    df = choose(ids, f, prompts(towards), TOP)
    assert df.kept.sum() == 1 and df.similarity[~df.kept].eq(1).all()
    assert df.score.dropna().eq(0).all()

def test_duplicates_leave_one_each():
    ids,f,_,towards = blobs(20, noise=1)
    f = np.tile(f, (10,1))
    ids = [f"S_{i*672}_0" for i in range(200)]
    df = choose(ids, f, prompts(towards), TOP, threshold=.99)
    assert len(df) == 200 and df.kept.sum() == 20

# -- the truth

class FourTruth:
    report = dict(regions=[1])
    def areas(self, x, y, px): return {0:{}, 1:{1:.6,2:.4}, 2:{1:.2,2:.3}, 3:{2:1.}}[x]
    def classes(self, x, y, px): return {0:{}, 1:{"a":.6,"b":.4}, 2:{"a":.2,"b":.3}, 3:{"b":1.}}[x]

def test_inside_counts_tissue_only():
    assert inside(FourTruth(), [0,1,2,3], [0]*4, 10).tolist() == [False,True,False,False]
    assert shown(FourTruth(), [0,1,2,3], [0]*4, 10) == [set(),{"a"},set(),{"b"}]

# -- the stage

@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(save_clip(build_clip(seed=1, device="cpu"), tmp_path_factory.mktemp("model")/"clip"))

@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    "A data folder with two slides, of which the second has no report."
    from pathgen.clip import load_clip
    tmp_path = tmp_path_factory.mktemp("made")
    xy, hash = [(x,y) for y in range(0,1344,112) for x in range(0,1344,112)], load_clip(model, "cpu").hash
    (tmp_path/"features").mkdir()
    rows = []
    for k,report in (("A","R"), ("B",None)):
        paint_slide(tmp_path/f"{k}.tiff")
        _,f,_,_ = blobs(len(xy), 256, seed=len(rows))
        write_bag(tmp_path/f"features/{k}.h5", xy, f, patch_size_level0=112, mpp=.25, encoder=hash)
        rows.append(dict(slide_id=k, path=str(tmp_path/f"{k}.tiff"), mpp=.25, mpp_from="metadata", status="ok", source="colon", project="COAD", report_id=report))
    write_table(pd.DataFrame(rows), tmp_path/"slides.parquet")
    write_table(pd.DataFrame(dict(report_id="R", part=[0,1], text=["infiltrating glands","necrosis is present"])), tmp_path/"reports.parquet")
    write_table(pd.DataFrame(dict(source="colon", project="COAD", attribute=["enlarged nuclei","mucin","fat"])), tmp_path/"attributes.parquet")
    return tmp_path

@pytest.fixture
def root(made, tmp_path):
    "A copy of it that a test may spoil."
    return shutil.copytree(made, tmp_path/"data")

def go(root, model, **kw):
    ps = dict(data=str(root), seed=0, device="cpu", workers=1, max_failed=.5, model=model, top_report=8, top_attribute=8,
              n_cluster=30, max_patches=40, search_denied=False, context=.5, together=.9, beyond=1., threshold=.88, gamma=1., quality=85)
    return run_select(**ps|kw)[0]

def files(root): return {str(p.relative_to(root)):p.read_bytes() for p in sorted((root/"patches").rglob("*.*")) if p.is_file()}

def test_table_images_sheets_squares(root, made, model):
    df = go(root, model)
    assert list(df.columns) == COLUMNS and df.slide_id.unique().tolist() == ["A","B"]
    assert df.groupby("slide_id").size().max() <= 40
    kept = df[df.kept]
    assert sorted(p.stem for p in (root/"patches").rglob("*.jpg") if "contact" not in p.name) == sorted(kept.patch_id)
    r = kept.iloc[0]
    assert r.patch_id == f"{r.slide_id}_{r.x}_{r.y}"
    im = np.asarray(Image.open(root/f"patches/{r.slide_id}/{r.patch_id}.jpg"))
    assert im.shape == (112,112,3)
    whole = np.asarray(Image.open(made/"A.tiff").convert("RGB"))
    assert abs(im.astype(int)-whole[r.y:r.y+112,r.x:r.x+112]).mean() < 12
    assert Image.open(root/"patches/A.contact.jpg").width > 1000
    g = read_json(root/"patches/A.geojson")
    a = df[df.slide_id == "A"]
    assert len(g["features"]) == len(a)
    x,y = np.array(g["features"][0]["geometry"]["coordinates"][0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (a.x[0], a.x[0]+112, a.y[0], a.y[0]+112)
    assert not df[df.slide_id == "B"].origins.str.contains("report").any()
    m = read_json(root/"metrics/select.json")
    assert m["slides"] == 2 and m["patches"] == len(kept) and m["chosen"] == len(df)

def test_resumes_and_repeats_byte_for_byte(root, model):
    go(root, model)
    first = files(root)
    before = {p:p.stat().st_mtime_ns for p in (root/"patches").rglob("*.jpg")}
    go(root, model)
    assert before == {p:p.stat().st_mtime_ns for p in (root/"patches").rglob("*.jpg")}
    gone = next(p for p in before if "contact" not in p.name)
    gone.unlink()
    go(root, model, workers=2)
    assert files(root) == first

def test_images_of_patches_no_longer_kept_go(root, model):
    go(root, model)
    df = go(root, model, top_report=2, n_cluster=5, top_attribute=2)
    assert sorted(p.stem for p in (root/"patches").rglob("*.jpg") if "contact" not in p.name) == sorted(df.patch_id[df.kept])

def test_features_of_another_encoder_are_refused(root, model):
    bag = read_bag(root/"features/B.h5")
    write_bag(root/"features/B.h5", bag.coords, bag.features, **bag.attrs | dict(encoder="other"))
    df = go(root, model)
    assert df.slide_id.unique().tolist() == ["A"]
    assert "run `pathgen run embed` again" in read_table(root/"patches/errors.parquet").error[0]

def test_features_that_are_not_numbers_are_refused(root, model):
    bag = read_bag(root/"features/B.h5")
    bag.features[3,3] = np.nan
    write_bag(root/"features/B.h5", bag.coords, bag.features, **bag.attrs)
    assert go(root, model).slide_id.unique().tolist() == ["A"]
    assert "B.h5 holds features that are not numbers" in read_table(root/"patches/errors.parquet").error[0]

def test_without_features_the_stage_to_run_is_named(root, model):
    for k in "AB": (root/f"features/{k}.h5").unlink()
    with pytest.raises(PathgenError, match="run `pathgen run embed` first"): go(root, model)

def test_a_slide_without_patches(root, model):
    bag = read_bag(root/"features/B.h5")
    write_bag(root/"features/B.h5", bag.coords[:0], bag.features[:0], **bag.attrs)
    assert go(root, model).slide_id.unique().tolist() == ["A"]
    assert not (root/"patches/errors.parquet").exists() and (root/"patches/B.contact.jpg").exists()

def test_missing_inputs_name_the_stage(root, model):
    (root/"attributes.parquet").unlink()
    with pytest.raises(PathgenError, match="pathgen run attributes"): go(root, model)
    (root/"reports.parquet").unlink()
    with pytest.raises(PathgenError, match="pathgen run reports"): go(root, model)

def test_denials_are_no_prompts(root, model):
    from pathgen.clip import load_clip
    write_table(pd.DataFrame(dict(report_id="R", part=[0,1], text=["Infiltrating glands. No mucin is identified.","There is no necrosis."])), root/"reports.parquet")
    clip = load_clip(model, "cpu")
    assert [i["report"][0] for i in slide_items(root, clip)] == [["Infiltrating glands."],[]]
    assert len(slide_items(root, clip, search_denied=True)[0]["report"][0]) == 2

def test_a_source_without_attributes_is_named(root, model):
    write_table(pd.DataFrame(dict(source=["colon"], project=["READ"], attribute=["crypts"])), root/"attributes.parquet")
    with pytest.raises(PathgenError, match="lacks the source 'colon'"): go(root, model)

# -- speed

def test_twenty_thousand_patches():
    ids,f,_,towards = blobs(20_000, 768, kinds=40, noise=.05)
    ps = prompts(towards, range(3), range(3,23))
    choose(ids[:200], f[:200], ps, TOP) # warm up
    start = time.process_time()
    df = choose(ids, f, ps, TOP)
    assert time.process_time()-start < 8 # about 1 s on two idle cores; this guards against a quadratic slip
    assert len(df) > 256
