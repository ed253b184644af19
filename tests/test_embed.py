"The stage embed on a slide that is painted here, and its error paths."
import shutil, time
from pathlib import Path
import h5py, numpy as np, pandas as pd, pytest
from pathgen.clip import build_clip, save_clip
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.embed import ahead, pca_rgb, rgb_map, run_embed
from pathgen.wsi import read_bag, write_bag

def paint_slide(path, n=1344):
    "Four quadrants of different tint and grain, as a tiled JPEG TIFF."
    import tifffile
    r = np.random.default_rng(0)
    im = r.integers(0, 60, (n,n,1)) + np.array([[180,120,160]])
    im[:n//2,:n//2] = [240,240,240]
    im[n//2:,n//2:] = [110,60,140] + 90*(np.mgrid[:n//2,:n//2].sum(0)//20%2)[...,None]
    desc = f"Aperio Image Library v12.0.15 \r\n{n}x{n} (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = 0.25"
    tifffile.imwrite(path, im.astype(np.uint8), tile=(256,256), compression="jpeg", photometric="rgb",
                     description=desc, metadata=None)

@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(save_clip(build_clip(seed=1, device="cpu"), tmp_path_factory.mktemp("model")/"clip"))

@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides")/"A.tiff"
    paint_slide(path)
    return path

@pytest.fixture
def root(tmp_path, painted):
    "A data folder with two tiled slides."
    rows, xy = [], [(x,y) for y in range(0,1344,224) for x in range(0,1344,224)]
    for k in ("A","B"):
        shutil.copy(painted, tmp_path/f"{k}.tiff")
        (tmp_path/"tiles").mkdir(exist_ok=True)
        write_bag(tmp_path/f"tiles/{k}.h5", xy, patch_size=224, patch_level=0, patch_size_level0=224, mpp=.25)
        rows.append(dict(slide_id=k, path=str(tmp_path/f"{k}.tiff"), mpp=.25, mpp_from="metadata", status="ok"))
    write_table(pd.DataFrame(rows), tmp_path/"slides.parquet")
    return tmp_path

def go(root, model, **kw):
    return run_embed(**(dict(data=str(root), device="cpu", workers=2, max_failed=.5, model=model, also=[], batch=16) | kw))

def times(root): return {p.name:p.stat().st_mtime_ns for p in (root/"features").glob("*.h5")}

def test_features_follow_the_coords(root, model):
    df = go(root, model)
    assert df.patches.tolist() == [36,36]
    bag = read_bag(root/"features/A.h5")
    assert bag.features.dtype == np.float16 and bag.features.shape == (36,256)
    assert (bag.coords == read_bag(root/"tiles/A.h5", features=False).coords).all()
    assert bag.attrs["patch_size_level0"] == 224 and bag.attrs["mpp"] == .25 and bag.attrs["encoder"]
    f = bag.features.astype("float32")
    white = (bag.coords < 600).all(1)
    dark = (bag.coords >= 672).all(1)
    assert (f[white]@f[white].T).mean() > (f[white]@f[dark].T).mean() # alike where the slide is alike
    m = read_json(root/"metrics/embed.json")
    assert m == dict(dim=256, failed=0, patches=72, slides=2)

def test_second_run_does_nothing_and_a_changed_grid_is_redone(root, model):
    go(root, model)
    before = times(root)
    go(root, model)
    assert times(root) == before
    write_bag(root/"tiles/B.h5", [[0,0],[224,0]], patch_size_level0=224, mpp=.25)
    df = go(root, model)
    assert times(root)["A.h5"] == before["A.h5"] and times(root)["B.h5"] != before["B.h5"]
    assert df.patches.tolist() == [36,2]

def test_another_encoder_makes_new_features(root, model, tmp_path):
    go(root, model)
    first = read_bag(root/"features/A.h5").attrs["encoder"]
    go(root, str(save_clip(build_clip(seed=2, device="cpu"), tmp_path/"other")))
    assert read_bag(root/"features/A.h5").attrs["encoder"] != first

def test_same_bytes_whatever_the_number_of_threads(root, model):
    go(root, model, workers=1)
    one = (root/"features/A.h5").read_bytes()
    (root/"features/A.h5").unlink()
    go(root, model, workers=4)
    assert (root/"features/A.h5").read_bytes() == one

def test_a_broken_slide_is_noted_and_the_rest_goes_on(root, model):
    (root/"B.tiff").write_bytes(b"no slide")
    df = go(root, model)
    assert df.slide_id.tolist() == ["A"]
    errors = read_table(root/"features/errors.parquet")
    assert errors.item.tolist() == ["B"] and "B.tiff" in errors.error[0]
    with pytest.raises(PathgenError, match="1 of 2 failed"): go(root, model, max_failed=.1)

def test_a_damaged_bag_of_coords_is_named(root, model):
    (root/"tiles/B.h5").write_bytes((root/"tiles/B.h5").read_bytes()[:200])
    go(root, model)
    assert "B.h5 cannot be read as a bag" in read_table(root/"features/errors.parquet").error[0]

def test_a_bag_without_the_side_of_its_patches_is_named(root, model):
    write_bag(root/"tiles/B.h5", [[0,0]], mpp=.25)
    assert go(root, model).slide_id.tolist() == ["A"]
    assert "B.h5 does not tell the side of its patches" in read_table(root/"features/errors.parquet").error[0]

def test_a_bag_of_another_level_without_the_side_at_level_0_is_named(root, model):
    write_bag(root/"tiles/B.h5", [[0,0]], patch_size=224, patch_level=1, mpp=.25)
    assert go(root, model).slide_id.tolist() == ["A"]
    assert "B.h5 does not tell the side of its patches" in read_table(root/"features/errors.parquet").error[0]

def test_a_bag_without_coords_is_named(root, model):
    with h5py.File(root/"tiles/B.h5", "w") as h: h.attrs["patch_size_level0"] = 224
    assert go(root, model).slide_id.tolist() == ["A"]
    assert "B.h5 holds no coords of patches: delete it" in read_table(root/"features/errors.parquet").error[0]

def test_a_model_that_another_took_the_place_of_is_loaded_anew(root, tmp_path):
    put = lambda seed: str(save_clip(build_clip(seed=seed, device="cpu"), tmp_path/"one"))
    go(root, put(1))
    first = read_bag(root/"features/A.h5").attrs["encoder"]
    go(root, put(2))
    assert read_bag(root/"features/A.h5").attrs["encoder"] != first

def test_without_a_bag_the_stage_to_run_is_named(root, model):
    for k in "AB": (root/f"tiles/{k}.h5").unlink()
    with pytest.raises(PathgenError, match="run `pathgen run tile` first"): go(root, model)

def test_a_slide_without_patches_gives_an_empty_bag(root, model):
    write_bag(root/"tiles/B.h5", np.zeros((0,2)), patch_size_level0=224, mpp=.25)
    assert go(root, model).patches.tolist() == [36,0]
    assert read_bag(root/"features/B.h5").features.shape == (0,256)

def test_missing_inputs_name_the_stage(tmp_path, model):
    with pytest.raises(PathgenError, match="pathgen run tile"): go(tmp_path, model)
    (tmp_path/"tiles").mkdir()
    with pytest.raises(PathgenError, match="pathgen run slides"): go(tmp_path, model)

def test_another_model_that_cannot_be_had_is_reported(root, model):
    df = go(root, model, also=["gone=../no/such/model",f"same={model}"])
    assert list(df.attrs["lost"]) == ["gone"] and "no such model folder" in df.attrs["lost"]["gone"]
    assert (root/"features_same/A.h5").exists() and not (root/"features_gone").exists() and df.patches.tolist() == [36,36]
    with pytest.raises(PathgenError, match="models/clip is missing"): go(root, model, also=["clip"])

def test_no_model_and_bad_batch(root, model):
    with pytest.raises(PathgenError, match="clip_init"): go(root, None)
    with pytest.raises(PathgenError, match="embed.batch is 0"): go(root, model, batch=0)

def test_bags_of_other_tools_are_read(tmp_path):
    for name,shape in (("feats",(3,8)), ("features",(1,3,8))):
        with h5py.File(tmp_path/"b.h5", "w") as h: h[name] = np.ones(shape, "f4")
        assert read_bag(tmp_path/"b.h5").features.shape == (3,8)
    with h5py.File(tmp_path/"b.h5", "w") as h: h["features"], h["coords"] = np.ones((3,8)), np.ones((2,2))
    with pytest.raises(PathgenError, match="2 coords and 3 features"): read_bag(tmp_path/"b.h5")
    with h5py.File(tmp_path/"b.h5", "w") as h: h["coords"] = np.ones((2,2))
    with pytest.raises(PathgenError, match="no table"): read_bag(tmp_path/"b.h5")

@pytest.mark.parametrize("spoil", [lambda h: h.create_group("coords"), lambda h: h.create_dataset("coords", data=1.), lambda h: h.create_group("features")])
def test_a_bag_that_holds_another_kind_of_thing_is_named(tmp_path, spoil):
    with h5py.File(tmp_path/"b.h5", "w") as h:
        spoil(h)
        for k in {"coords","features"} - set(h): h[k] = np.ones((3,2))
    with pytest.raises(PathgenError, match="b.h5 cannot be read as a bag .*: delete it and run its stage again"): read_bag(tmp_path/"b.h5")

def test_features_of_words_are_no_features(tmp_path):
    with h5py.File(tmp_path/"b.h5", "w") as h: h["coords"], h["features"] = np.ones((3,2)), np.array([[b"a",b"b"]]*3)
    with pytest.raises(PathgenError, match="b.h5 holds no table"): read_bag(tmp_path/"b.h5")

def test_real_bags():
    bags = sorted(Path("../shared/data/bags").glob("*/features.h5"))
    if not bags: pytest.skip("../shared/data/bags is not there")
    got = [read_bag(b) for b in bags]
    assert sorted(len(b) for b in got) == [180,777]
    assert all(b.features.shape[1] == 512 for b in got)
    assert sum(b.coords is not None for b in got) == 1

def test_ahead_stays_bounded_and_stops_when_left():
    made = []
    def work():
        for i in range(100): made.append(i); yield i
    g = ahead(work(), depth=3)
    assert next(g) == 0
    time.sleep(.1)
    assert len(made) <= 5
    g.close()
    time.sleep(.1)
    assert len(made) <= 5

def test_maps_of_odd_features():
    assert np.isfinite(pca_rgb(np.zeros((7,4), "f2"))).all()
    assert pca_rgb(np.zeros((0,4))).shape == (0,3)
    m = rgb_map(np.array([[0,0],[448,224]]), 224, np.array([1.,2.]))
    assert m.shape == (2,3) and np.isnan(m).sum() == 4
