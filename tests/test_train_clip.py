"The stage on small shards: killed and run again, run twice, and fed with what is broken."
import io, json, shutil, subprocess
import numpy as np, pandas as pd, pytest, webdataset as wds
from PIL import Image
from pathgen import clip as C, train_clip as T
from pathgen.core import PathgenError, file_digest

SAY = ["large pale vacuoles", "small dark nuclei"]
KW = dict(seed=0, device="cpu", workers=0, processes=1, name="m", pairs=["init"], denied=True, start=None, arch="tiny", epochs=2, batch=8, lr=5e-4, wd=.1, warmup=2, tile_px=672, tiles=0)

def shard(path, n, seed):
    g = np.random.default_rng(seed)
    with wds.TarWriter(str(path), mtime=0) as t:
        for i in range(n):
            im = (g.normal(0, 12, (64,64,3)) + (230 if i%2 else 90)).clip(0,255).astype(np.uint8)
            t.write({"__key__": f"p{seed}{i:03d}", "jpg": im, "txt": SAY[i%2], "json": {}})

@pytest.fixture
def root(tmp_path):
    (tmp_path/"init/shards").mkdir(parents=True)
    for k in range(2): shard(tmp_path/f"init/shards/train-{k:06d}.tar", 16, k)
    shard(tmp_path/"init/shards/val-000000.tar", 12, 9)
    return tmp_path

def model_files(root): return {p.name: file_digest(p) for p in sorted((root/"models/m").rglob("*")) if p.is_file()}

def test_the_stage_leaves_a_model_that_open_clip_loads(root):
    r = T.run_train_clip(root, **KW)
    m = json.loads((root/"metrics/m.json").read_text())
    assert {"loss","r1","r10","chance_r1","untrained_r1"} <= set(m) and m["pairs"] == 32 and len(r["losses"]) == 8
    import open_clip
    model,_ = open_clip.create_model_from_pretrained(f"local-dir:{root/'models/m'}")
    assert model.visual.image_size in (112, (112,112))
    for card in ("README.md","hf/README.md"):
        text = (root/"models/m"/card).read_text()
        assert "- chance_r1: 0." in text and "pairs of init (2 times), 64 shown in all. None of them is known to be synthetic." in text and "license: other" in text

def test_a_card_says_what_is_synthetic_and_who_owns_it(root):
    facts = dict(image="phantom/init/x.jpg"), dict(slide_id="PHTM-01"), dict(slide_id="TCGA-01")
    def painted(k, some):
        with wds.TarWriter(str(root/f"{k}.tar")) as t:
            for i,f in enumerate(some): t.write({"__key__": f"p{i}", "txt": "x", "json": f})
        return T.painted([root/f"{k}.tar"])
    assert (painted(0, facts[:2]), painted(1, facts[1:]), painted(2, facts[2:])) == (1, .5, 0)
    m = dict(pairs_seen=8, epochs=2)
    card = lambda share, licence="other": T._card(m, ["init","pairs","pairs"], "m", "tiny", share, licence)
    assert "pairs of init (2 times) and pairs (4 times), 8 shown" in card(1) and "All of them are synthetic" in card(1) and "50% of them" in card(.5)
    assert "Apache-2.0" in card(1, "apache-2.0") and "Apache-2.0" not in card(0)
    (root/"free").mkdir(); (root/"free/README.md").write_text("---\nlicense: apache-2.0\n---")
    assert [T._licence(s, o) for s,o in ((1,None), (1,root/"free"), (.9,None), (1,"ViT-B-16-quickgelu:openai"))] == ["apache-2.0","apache-2.0","other","other"]

def test_a_second_run_trains_nothing_and_writes_the_same_bytes(root, monkeypatch):
    T.run_train_clip(root, **KW)
    first = model_files(root)
    monkeypatch.setattr(T, "fit", lambda *a, **k: pytest.fail("trained again"))
    T.run_train_clip(root, **KW)
    assert model_files(root) == first
    with pytest.raises(pytest.fail.Exception): T.run_train_clip(root, **(KW | dict(lr=1e-4)))

@pytest.mark.parametrize("module", [C, T])
def test_a_model_that_other_code_trained_is_trained_again(root, tmp_path, monkeypatch, module):
    T.run_train_clip(root, **KW)
    (tmp_path/"other.py").write_text("# another way to train")
    monkeypatch.setattr(module, "__file__", str(tmp_path/"other.py"))
    monkeypatch.setattr(T, "fit", lambda *a, **k: pytest.fail("trained again"))
    with pytest.raises(pytest.fail.Exception): T.run_train_clip(root, **KW)

def test_a_killed_run_goes_on_to_the_same_bytes(root, monkeypatch):
    T.run_train_clip(root, **KW)
    want = model_files(root)
    shutil.rmtree(root/"models/m")
    rest = C.Batches.set_epoch
    def stop(self, epoch):
        if epoch: raise KeyboardInterrupt
        rest(self, epoch)
    monkeypatch.setattr(C.Batches, "set_epoch", stop)
    with pytest.raises(KeyboardInterrupt): T.run_train_clip(root, **KW)
    assert any(p.name.startswith("checkpoint-") for p in (root/"models/m").iterdir())
    monkeypatch.undo()
    T.run_train_clip(root, **KW)
    assert model_files(root) == want

def test_a_run_killed_at_its_end_leaves_no_checkpoint(root):
    T.run_train_clip(root, **KW)
    want = model_files(root)
    (root/"models/m/checkpoint-0123456789ab.pt").write_bytes(b"left")
    T.run_train_clip(root, **KW)
    assert model_files(root) == want

def test_weights_of_a_killed_run_with_other_parameters_are_not_taken(root, monkeypatch):
    T.run_train_clip(root, **KW)
    want, save = model_files(root), C.save_clip
    def stop(*a): save(*a); raise KeyboardInterrupt
    monkeypatch.setattr(T, "save_clip", stop)
    with pytest.raises(KeyboardInterrupt): T.run_train_clip(root, **(KW | dict(lr=1e-4)))
    monkeypatch.undo()
    T.run_train_clip(root, **KW)
    assert model_files(root) == want

def test_a_start_model_is_gone_on_from(root):
    C.save_clip(C.build_clip(seed=4, device="cpu"), root/"models/first")
    r = T.run_train_clip(root, **(KW | dict(start=str(root/"models/first"), epochs=1, lr=1e-9)))
    ims = np.full((1,112,112,3), 130, np.uint8)
    np.testing.assert_allclose(r["clip"].encode_images(ims), C.load_clip(root/"models/first", "cpu").encode_images(ims), atol=1e-2)

@pytest.mark.parametrize("harm, says", [
    (lambda d: [p.unlink() for p in d.glob("train*")], "run the stage init first"),
    (lambda d: (d/"train-000000.tar").write_bytes(b"nothing"), "train-000000.tar: not a whole tar"),
    (lambda d: (d/"train-000000.tar").write_bytes((d/"train-000000.tar").read_bytes()[:5000]), "train-000000.tar"),
    (lambda d: rot(d/"train-000001.tar"), "image p1003 cannot be decoded")])
def test_broken_shards_are_one_clear_line(root, harm, says):
    harm(root/"init/shards")
    with pytest.raises(PathgenError, match=says) as e: T.run_train_clip(root, **KW)
    assert "\n" not in str(e.value)

def test_a_broken_image_is_one_clear_line_from_a_worker_too(root, monkeypatch):
    rot(root/"init/shards/train-000001.tar")
    monkeypatch.setattr(T, "MEMORY", 0)
    with pytest.raises(PathgenError, match="^[^ ]*train-000001.tar: image p1003 cannot be decoded; run the stage that wrote it again [^\n]*$"): T.run_train_clip(root, **(KW | dict(workers=1)))

def rot(path):
    row = T.read_index([path]).set_index("key").loc["p1003"]
    raw = bytearray(path.read_bytes()); raw[row.offset:row.offset+200] = bytes(200); path.write_bytes(raw)

def test_recall_counts_equal_texts_as_found():
    e = np.eye(4)
    assert T.recall(e[[0,0,1,1]], e[[0,0,1,0]], (1,))["r1"] == .75

def test_precision_at_needs_only_the_classes_there_are():
    clip = C.build_clip(seed=0, device="cpu")
    e = clip.encode_images(np.zeros((4,112,112,3), np.uint8))
    p = T.precision_at(clip, e, ["adipose"]*4, 2)
    assert list(p.index) == ["adipose"] and p.iloc[0] == 1

TOGETHER = """
from pathgen import clip as C
C.augment, C.precision = (lambda x, g: x.float()), (lambda d: 'fp32')
from pathgen.train_clip import crew_member
crew_member('job.json')
"""

def test_two_processes_do_the_arithmetic_of_one(root, monkeypatch):
    monkeypatch.setattr(C, "augment", lambda x, g: x.float())
    monkeypatch.setattr(C, "precision", lambda d: "fp32")
    one = T.run_train_clip(root, **(KW | dict(name="one")))
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda cmd, **k: real([*cmd[:-1], TOGETHER], **k))
    two = T.run_train_clip(root, **(KW | dict(name="two", processes=2)))
    assert np.allclose(one["losses"], two["losses"], atol=2e-3)
    texts = ["small dark nuclei", "mucin"]
    assert (one["clip"].encode_texts(texts)*two["clip"].encode_texts(texts)).sum(1).min() > .9995

def test_what_stops_one_of_several_processes_is_said_in_one_line(root):
    with pytest.raises(PathgenError) as e: T.run_train_clip(root, **(KW | dict(processes=2, batch=7)))
    assert "cannot be shared by 2 processes" in str(e.value) and "\n" not in str(e.value)

def test_shards_lie_in_the_folder_of_pairs_or_in_its_folder_shards(root):
    (root/"pairs").mkdir()
    shard(root/"pairs/train-000000.tar", 16, 3); shard(root/"pairs/val-000000.tar", 12, 4)
    both = T.run_train_clip(root, **(KW | dict(pairs=["init","pairs","pairs"])))
    assert both["metrics"]["pairs"] == 64 and both["metrics"]["pairs_seen"] == 128
    with pytest.raises(PathgenError, match="run the stage nowhere first"): T.run_train_clip(root, **(KW | dict(pairs=["nowhere"])))

def test_stage_two_goes_on_from_stage_one_by_name(root):
    first = T.run_train_clip(root, **KW)["clip"]
    T.run_train_clip(root, **(KW | dict(name="next", start="m", lr=1e-6)))
    near = C.load_clip(root/"models/next", "cpu").encode_texts(SAY)*first.encode_texts(SAY)
    assert near.sum(1).min() > .999
    with pytest.raises(PathgenError, match="no such model folder"): T.run_train_clip(root, **(KW | dict(start="gone")))

def test_the_form_of_transformers_gives_the_same_vectors(root):
    T.run_train_clip(root, **KW)
    ours, theirs = C.load_clip(root/"models/m", "cpu"), C.load_clip(f"hf:{root/'models/m/hf'}", "cpu")
    ours.precision = theirs.precision = "fp32"
    assert np.abs(ours.encode_texts(SAY)-theirs.encode_texts(SAY)).max() < 1e-4

def test_a_loss_that_is_no_number_stops_the_stage(root):
    with pytest.raises(PathgenError, match="lower the learning rate"): T.run_train_clip(root, **(KW | dict(lr=1e9, epochs=6, warmup=0)))

def test_pairs_are_counted_as_they_were_shown(root):
    m = T.run_train_clip(root, **(KW | dict(batch=500)))["metrics"]
    assert (m["pairs"], m["pairs_seen"]) == (32, 64)
