"The three published formats with all their faults, through the whole stage."
import io, json, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import init as I
from pathgen.core import PathgenError, file_digest

CAPTIONS = ["Large pale vacuoles of mature fat.", "Small dark nuclei of lymphocytes."]
KW = dict(seed=0, device="cpu", workers=1, pathcap=["raw/pathcap"], quilt=["raw/quilt"], openpath=["raw/openpath"], csv=[], min_px=64,
    min_words=3, min_he=.5, near_bits=48, model=None, epochs=1, batch=8, lr=1e-3, drop_pathcap=0., drop_quilt=.2, drop_openpath=0.,
    drop_csv=0., most_pathcap=100, most_quilt=100, most_openpath=100, val_share=.2, shard_pairs=10, most_px=128)

def tissue(kind, seed, px=120):
    g = np.random.default_rng([kind, seed]); y,x = np.mgrid[:px,:px]
    im = np.full((px,px,3), (232,180,208), float)
    for cy,cx in g.uniform(0, px, (70 if kind else 14, 2)):
        im[(y-cy)**2+(x-cx)**2 < (5 if kind else 13)**2] = (90,55,140) if kind else (246,238,246)
    return Image.fromarray((im+g.normal(0, 9, im.shape)).clip(0,255).astype(np.uint8))

def collection(root, source, n, first):
    d = root/"raw"/source/"images"; d.mkdir(parents=True)
    rows = []
    for i in range(n):
        tissue(i%2, first+i).save(d/f"{source}{i:02d}.jpg", quality=90)
        rows.append(dict(image=f"{source}{i:02d}.jpg", caption=CAPTIONS[i%2]))
    return d, rows

@pytest.fixture
def root(tmp_path):
    "12 + 24 + 8 pairs with one fault of each kind."
    d,rows = collection(tmp_path, "pathcap", 12, 0)
    (d/"pathcap03.jpg").write_bytes((d/"pathcap03.jpg").read_bytes()[:700])
    rows.append(dict(image="gone.jpg", caption=CAPTIONS[0]))
    (d.parent/"pathcap.json").write_text(json.dumps(rows))
    d,rows = collection(tmp_path, "quilt", 24, 100)
    tissue(0, 0).resize((30,30)).save(d/"quilt02.jpg")
    Image.fromarray(np.random.default_rng(0).integers(90, 130, (120,120,3), dtype=np.uint8)).save(d/"quilt05.jpg")
    q = pd.DataFrame(rows).rename(columns=dict(image="image_path")).assign(subset="quilt", split="train", not_histology=0)
    q["caption"] = [str([c]) for c in q.caption]
    q.loc[7,"caption"], q.loc[9,"not_histology"] = "['Fig. 3']", 1
    q.to_csv(d.parent/"quilt_1M_lookup.csv")
    d,rows = collection(tmp_path, "openpath", 8, 200)
    (d/"openpath01.jpg").write_bytes((d/"openpath00.jpg").read_bytes())
    out = io.BytesIO(); Image.open(d/"openpath02.jpg").resize((100,100)).save(out, "JPEG", quality=60)
    (d/"openpath03.jpg").write_bytes(out.getvalue())
    pd.DataFrame(rows).to_csv(d.parent/"openpath.csv", index=False)
    return tmp_path

def prints(root):
    out = root/"init"
    return {str(p.relative_to(root)): file_digest(p) for p in sorted([*out.rglob("*"), *(root/"metrics").rglob("*")]) if p.is_file()}

def test_every_fault_is_counted_and_a_second_run_gives_the_same_bytes(root):
    df,cuts = I.run_init(root, **KW)
    m = json.loads((root/"metrics/init.json").read_text())
    want = dict(broken_image=2, tiny_image=1, no_words=1, not_histology=2, duplicate=1, near_duplicate=1, misaligned=4)
    assert {k[8:]:v for k,v in m.items() if k.startswith("dropped_")} == want
    assert m["pairs"] == 45-12 and "misaligned_found" not in m
    pairs,dropped = (pd.read_parquet(root/"init"/f) for f in ("pairs.parquet","dropped.parquet"))
    assert len(pairs)+len(dropped) == 45 and pairs.pair_id.is_unique
    assert all((root/p).is_file() for p in pairs.image) and set(pairs.split) == {"train","val"}
    assert set(dropped[dropped.reason == "misaligned"].source) == {"quilt"}
    assert "no such file" in set(dropped.error)
    first = prints(root)
    I.run_init(root, **KW)
    assert prints(root) == first

def test_images_are_not_measured_twice(root, monkeypatch):
    df = I.gather(root, {s:KW[s] for s in ("pathcap","quilt","openpath","csv")})
    a = I.measure_images(df.image, root, root/"m")
    monkeypatch.setattr(I, "write_table", lambda *a: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(a, I.measure_images(df.image, root, root/"m"))

def test_open_clips_own_loader_reads_the_shards(root):
    I.run_init(root, **KW)
    from types import SimpleNamespace
    import open_clip_train.data as data
    shards = sorted(map(str, (root/"init/shards").glob("train-*.tar")))
    args = SimpleNamespace(train_data="::".join(shards), train_num_samples=None, train_data_upsampling_factors=None, dataset_resampled=False,
        seed=0, batch_size=4, workers=0, world_size=1)
    data = data.get_wds_dataset(args, lambda im: np.asarray(im.resize((8,8))).copy(), True, tokenizer=lambda t: [t])
    images,texts = next(iter(data.dataloader))
    assert images.shape == (4,8,8,3) and set(texts) <= set(CAPTIONS)
    n = json.loads((root/"init/shards/sizes.json").read_text())
    assert data.dataloader.num_samples >= sum(v for k,v in n.items() if k.startswith("train"))

def test_images_of_one_file_stay_in_one_split():
    df = pd.DataFrame(dict(source="a", image=[f"{i//2}.jpg" for i in range(40)], caption=[str(i) for i in range(40)]))
    part = I.split_by([f"{i//2}" for i in range(40)], dict(train=.8, val=.2), 0)
    assert len(part) == 20 and list(part.values()).count("val") == 4

def test_a_caption_is_never_code():
    assert I._text("['a', 'b']") == "a b"
    evil = "[__import__('os').getcwd()]"
    assert I._text(evil) == evil
    assert I._text(float("nan")) == "" and I._text(None) == ""

def test_most_pairs_are_drawn_by_the_seed():
    df = pd.DataFrame(dict(source=["quilt"]*30, reason=[""]*28+["tiny image"]*2))
    a,b = I.take_most(df.copy(), dict(quilt=10), 0), I.take_most(df.copy(), dict(quilt=10), 0)
    assert (a.reason == "").sum() == 10 and a.equals(b) and not a.equals(I.take_most(df.copy(), dict(quilt=10), 1))

@pytest.mark.parametrize("harm, says", [
    (lambda r: (r/"raw/pathcap/pathcap.json").unlink(), "no .*json"),
    (lambda r: (r/"raw/pathcap/pathcap.json").write_text("[{"), "not JSON"),
    (lambda r: (r/"raw/pathcap/pathcap.json").write_text("[]"), "holds no pairs"),
    (lambda r: (r/"raw/quilt/quilt_1M_lookup.csv").write_text("a,b\n1,2\n"), "no field for the image"),
    (lambda r: (r/"raw/openpath/openpath.csv").write_bytes(b""), "not a readable CSV")])
def test_a_collection_that_cannot_be_read_is_one_clear_line(root, harm, says):
    harm(root)
    with pytest.raises(PathgenError, match=says) as e: I.run_init(root, **KW)
    assert "\n" not in str(e.value)

def test_nothing_left_is_said_clearly(root):
    with pytest.raises(PathgenError, match="no pair"): I.run_init(root, **(KW | dict(min_px=4000)))

def test_real_tissue_is_histology():
    real = Path(__file__).resolve().parents[2]/"shared/data/patches"
    if not real.is_dir(): pytest.skip("the optional folder ../shared/data is absent")
    files = sorted(p for p in real.rglob("*") if p.suffix.lower() in (".jpg",".jpeg",".png",".tif"))[::12]
    ms = [I.stain_measures(Image.open(p)) for p in files]
    assert len(ms) > 50 and all(m["he"] >= .5 and m["stained"] >= .01 and m["colours"] >= 16 for m in ms)

def test_pictures_of_other_things_are_not():
    data = pytest.importorskip("skimage.data")
    for name in ("astronaut","chelsea","coffee","camera","page","moon","immunohistochemistry"):
        m = I.stain_measures(Image.fromarray(np.squeeze(getattr(data, name)())).convert("RGB"))
        assert m["he"] < .5, (name, m)

def test_a_killed_first_model_goes_on_to_the_same_bytes(root, monkeypatch):
    from pathgen import clip as C
    kw = KW | dict(epochs=2)
    I.run_init(root, **kw)
    want = prints(root)
    shutil.rmtree(root/"init/scores")
    rest, epochs = C.Batches.set_epoch, []
    def stop(self, epoch):
        if epoch: raise KeyboardInterrupt
        rest(self, epoch)
    monkeypatch.setattr(C.Batches, "set_epoch", stop)
    with pytest.raises(KeyboardInterrupt): I.run_init(root, **kw)
    monkeypatch.setattr(C.Batches, "set_epoch", lambda self, epoch: (epochs.append(epoch), rest(self, epoch)))
    I.run_init(root, **kw)
    assert epochs == [1,0,1], "the first of two models goes on after its first epoch"
    assert prints(root) == want
