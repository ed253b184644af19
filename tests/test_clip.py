"Faults of models and checkpoints, and that a killed training goes on as if nothing had happened."
import json, pickle
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from pathgen import clip as C
from pathgen.core import PathgenError
from pathgen.zeroshot import load_models

SAY = ["large pale vacuoles", "small dark nuclei"]

def patches(n, px=112, seed=0):
    g = np.random.default_rng(seed)
    kinds = np.arange(n) % 2
    ims = np.where(kinds[:,None,None,None] == 0, 230, 90) + g.normal(0, 12, (n,px,px,3))
    return ims.clip(0, 255).astype(np.uint8), [SAY[k] for k in kinds]

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    d = tmp_path_factory.mktemp("model")
    clip = C.build_clip(seed=3, device="cpu")
    C.save_clip(clip, d, "For a test.")
    return d, clip

def copy(d, to):
    to.mkdir()
    for f in d.iterdir(): (to/f.name).write_bytes(f.read_bytes())
    return to

def test_tokens_are_counted_as_open_clip_counts():
    import open_clip
    for t in ("", "Fused, cribriform glands; no necrosis.", "tumour cells in solid sheets "*20):
        n = C.count_tokens(t)
        assert min(n, 77) == int((open_clip.tokenize([t]) != 0).sum())

def test_same_seed_same_weights_and_the_global_generator_stays():
    torch.manual_seed(5); a = torch.rand(1); torch.manual_seed(5)
    one,two = C.build_clip(seed=1, device="cpu"), C.build_clip(seed=1, device="cpu")
    assert torch.equal(torch.rand(1), a)
    assert all(torch.equal(p, q) for p,q in zip(one.model.state_dict().values(), two.model.state_dict().values()))
    assert not torch.equal(one.model.visual.conv1.weight, C.build_clip(seed=2, device="cpu").model.visual.conv1.weight)

def test_images_of_any_kind_and_batch(saved):
    clip = saved[1]
    rgb = patches(5, 130)[0]
    every = clip.encode_images(rgb)
    clip.batch = 2
    np.testing.assert_allclose(clip.encode_images([Image.fromarray(o) for o in rgb]), every, atol=5e-3)
    clip.batch = 128
    grey = Image.fromarray(rgb[0]).convert("L")
    assert clip.encode_images([grey, Image.fromarray(rgb[0]).convert("RGBA")]).shape == (2, clip.dim)

def test_long_texts_are_cut_not_refused(saved):
    v = saved[1].encode_texts(["gland "*500, "gland"])
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)

def test_hash_follows_the_weights(saved, tmp_path):
    d,clip = saved
    with torch.no_grad(): clip.model.visual.conv1.weight[0,0,0,0] += 1
    C.save_clip(clip, tmp_path/"other")
    with torch.no_grad(): clip.model.visual.conv1.weight[0,0,0,0] -= 1
    assert C.load_clip(d, "cpu").hash == C.load_clip(d, "cpu").hash != C.load_clip(tmp_path/"other", "cpu").hash

@pytest.mark.parametrize("harm, says", [
    (lambda d: (d/"open_clip_config.json").unlink(), "open_clip_config.json"),
    (lambda d: (d/"open_clip_config.json").write_text("{"), "not JSON"),
    (lambda d: (d/"open_clip_model.safetensors").unlink(), "no weights"),
    (lambda d: (d/"open_clip_model.safetensors").write_bytes((d/"open_clip_model.safetensors").read_bytes()[:5000]), "cannot be loaded"),
    (lambda d: edit(d, layers=5), "do not fit"),
    (lambda d: edit(d, quick_gelu=True), "QuickGELU")])
def test_a_damaged_folder_is_one_clear_line(saved, tmp_path, harm, says):
    d = copy(saved[0], tmp_path/"m")
    harm(d)
    with pytest.raises(PathgenError, match=says) as e: C.load_clip(d, "cpu")
    assert "\n" not in str(e.value) and str(d) in str(e.value)

def edit(d, **kw):
    p = d/"open_clip_config.json"; c = json.loads(p.read_text())
    for k,v in kw.items(): (c["model_cfg"]["vision_cfg"] if k == "layers" else c["model_cfg"])[k] = v
    p.write_text(json.dumps(c))

class Bomb:
    def __reduce__(self): return open, ("/tmp/pathgen_test_bomb", "w")

def test_a_pickle_is_not_executed(tmp_path):
    import os
    with open(tmp_path/"w.pt", "wb") as f: pickle.dump(Bomb(), f)
    with pytest.raises(PathgenError, match="cannot be loaded"): C.load_clip(f"tiny:{tmp_path/'w.pt'}", "cpu")
    assert not os.path.exists("/tmp/pathgen_test_bomb")

@pytest.mark.parametrize("name, says", [("nothing/here", "no such model folder"), ("model.safetensors", "ARCHITECTURE:"),
    ("ViT-B-16:nosuchtag", "neither a file nor weights"), ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai")])
def test_names_that_cannot_be(name, says):
    with pytest.raises(PathgenError, match=says): C.load_clip(name, "cpu")

def test_a_file_of_bare_weights_needs_its_activation_stated(tmp_path):
    C.register("twin"); C.register("twin-quickgelu", C.TINY | dict(quick_gelu=True))
    clip = C.build_clip("twin-quickgelu", seed=3, device="cpu")
    file = C.save_clip(clip, tmp_path)/"open_clip_model.safetensors"
    with pytest.raises(PathgenError, match="twin-quickgelu:.* or twin-gelu:") as e: C.load_clip(f"twin:{file}", "cpu")
    assert "\n" not in str(e.value)
    quick,plain = (C.load_clip(f"{arch}:{file}", "cpu") for arch in ("twin-quickgelu","twin-gelu"))
    assert quick.hash != plain.hash and C.load_clip(f"tiny:{file}", "cpu").image_px == 112
    np.testing.assert_allclose(C.probe(quick), C.probe(clip), atol=1e-5)
    assert np.abs(np.array(C.probe(plain))-C.probe(clip)).max() > 1e-3

def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    ims,texts = patches(32)
    kw = dict(epochs=2, batch=8, lr=1e-3, warmup=2)
    whole = C.build_clip(seed=0, device="cpu")
    losses = C.fit(whole, ims, texts, **kw)
    killed = C.build_clip(seed=0, device="cpu")
    keep,rest = tmp_path/"c.pt", C.Batches.set_epoch
    def stop(self, epoch):
        if epoch == 1: raise KeyboardInterrupt
        rest(self, epoch)
    monkeypatch.setattr(C.Batches, "set_epoch", stop)
    with pytest.raises(KeyboardInterrupt): C.fit(killed, ims, texts, checkpoint=keep, **kw)
    monkeypatch.undo()
    fresh = C.build_clip(seed=9, device="cpu")
    again = C.fit(fresh, ims, texts, checkpoint=keep, **kw)
    np.testing.assert_allclose(again, losses, atol=1e-5)
    for p,q in zip(whole.model.state_dict().values(), fresh.model.state_dict().values()): assert torch.allclose(p, q, atol=1e-5)
    keep.write_bytes(keep.read_bytes()[:1000])
    with pytest.raises(PathgenError, match="delete it"): C.fit(fresh, ims, texts, checkpoint=keep, **kw)

def test_a_loss_that_is_no_number_ends_the_training():
    clip = C.build_clip(seed=0, device="cpu")
    with torch.no_grad(): clip.model.visual.proj.mul_(float("nan"))
    ims,texts = patches(24)
    with pytest.raises(PathgenError, match="learning rate"): C.fit(clip, ims, texts, epochs=1, batch=8)
    with pytest.raises(PathgenError, match="damaged"): clip.encode_images(ims[:2])

@pytest.mark.parametrize("epochs", [1, 2])
def test_a_last_step_that_goes_wrong_leaves_no_checkpoint(tmp_path, monkeypatch, epochs):
    from open_clip import ClipLoss
    n, whole, keep = [], ClipLoss.forward, tmp_path/"c.pt"
    def spoilt(self, *args, **kw):
        n.append(0); out = whole(self, *args, **kw)
        return {k:v*float("nan") for k,v in out.items()} if len(n) == 3*epochs else out
    monkeypatch.setattr(ClipLoss, "forward", spoilt)
    with pytest.raises(PathgenError, match="end of an epoch: lower the learning rate") as e: C.fit(C.build_clip(seed=0, device="cpu"), *patches(24), epochs=epochs, batch=8, checkpoint=keep)
    assert len(n) == 3*epochs and "\n" not in str(e.value)
    assert keep.exists() == (epochs > 1)
    if epochs > 1: assert all(v.isfinite().all() for k,v in torch.load(keep, weights_only=True)["model"].items() if k != "attn_mask")

def test_weights_that_are_no_numbers_are_found_though_the_loss_is_one():
    clip = C.build_clip(seed=0, device="cpu")
    C.stay_finite("m", clip.model, [torch.tensor(1.)], "rest")
    with torch.no_grad(): clip.model.text_projection[0,0] = float("inf")
    with pytest.raises(PathgenError, match="^m: the loss or the weights .*: rest$"): C.stay_finite("m", clip.model, [torch.tensor(1.)], "rest")

def test_images_read_on_demand_train_as_images_in_memory(tmp_path):
    ims,texts = patches(16)
    for i,o in enumerate(ims): Image.fromarray(o).save(tmp_path/f"{i}.png")
    files = C.Files([tmp_path/f"{i}.png" for i in range(16)], 112)
    a,b = C.build_clip(seed=0, device="cpu"), C.build_clip(seed=0, device="cpu")
    kw = dict(epochs=1, batch=8, warmup=1)
    np.testing.assert_allclose(C.fit(a, ims, texts, **kw), C.fit(b, files, texts, **kw), atol=1e-5)

PAPER = ["tiny", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "ViT-H-14", "convnext_base_w_320", "ViT-L-14-CLIPA-336"]

@pytest.mark.parametrize("arch", PAPER)
def test_the_architectures_of_the_paper_are_there_by_name(arch):
    import open_clip, torch
    C.register()
    with torch.device("meta"): model = open_clip.create_model(arch, load_weights=False, pretrained_text=False, device="meta")
    plain = C.has_hf(SimpleNamespace(config=open_clip.get_model_config(arch)))
    assert model.visual.image_size and plain == (arch not in ("convnext_base_w_320", "ViT-L-14-CLIPA-336"))

def test_a_tokenizer_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PathgenError, match="bert-base-uncased.*fetch it"): C._tokenizer("ViT-L-14-CLIPA-336")

def test_towers_keep_their_weights_when_they_are_joined(tmp_path):
    import timm, torch
    from timm.models import save_for_hf
    from transformers import BertConfig, BertModel, BertTokenizerFast
    tower = timm.create_model("test_vit"); save_for_hf(tower, tmp_path/"tower", safe_serialization=True)
    (tmp_path/"words.txt").write_text("\n".join(["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]",*"abcdefghijklmnopqrstuvwxyz"]))
    BertTokenizerFast(str(tmp_path/"words.txt")).save_pretrained(tmp_path/"bert")
    bert = BertModel(BertConfig(vocab_size=31, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)); bert.save_pretrained(tmp_path/"bert")
    clip = C.load_clip(f"local-dir:{tmp_path/'tower'}+{tmp_path/'bert'}", "cpu")
    mine = dict(clip.model.visual.trunk.named_parameters())
    assert all(torch.equal(p, mine[n]) for n,p in tower.named_parameters() if n in mine) and len(mine) > 10
    assert torch.equal(clip.model.text.transformer.encoder.layer[0].output.dense.weight, bert.encoder.layer[0].output.dense.weight)
    C.save_clip(clip, tmp_path/"joined")
    back = C.load_clip(tmp_path/"joined", "cpu")
    assert back.channels[0] == list(clip.channels[0]) or tuple(back.channels[0]) == tuple(clip.channels[0])
    assert np.allclose(back.encode_texts(["mucin"]), clip.encode_texts(["mucin"]), atol=1e-5)

def test_a_clipmodel_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    C.save_hf(C.build_clip(seed=1, device="cpu"), tmp_path/"hf")
    file = tmp_path/"hf/model.safetensors"
    save_file({k:v for k,v in load_file(file).items() if k!="visual_projection.weight"}, file, metadata=dict(format="pt"))
    with pytest.raises(PathgenError, match="lacks weights, such as visual_projection.weight"): C.load_clip(f"hf:{tmp_path/'hf'}", "cpu")

@pytest.mark.parametrize("harm", ["cut", "shape", "config", "gone"])
def test_a_damaged_folder_of_transformers_is_one_clear_line(tmp_path, harm):
    from safetensors.torch import load_file, save_file
    d = C.save_hf(C.build_clip(seed=1, device="cpu"), tmp_path/"hf")
    file = d/"model.safetensors"
    if harm == "cut": file.write_bytes(file.read_bytes()[:5000])
    if harm == "shape": save_file({k:v[:1] if k == "visual_projection.weight" else v for k,v in load_file(file).items()}, file, metadata=dict(format="pt"))
    if harm == "config": (d/"config.json").write_text("[]")
    if harm == "gone": file.unlink()
    with pytest.raises(PathgenError, match="download it again.*code of its own .CONCH, MUSK, KEEP.") as e: C.load_clip(f"hf:{d}", "cpu")
    assert "\n" not in str(e.value) and str(e.value).startswith(f"hf:{d}: ")
    assert load_models([f"other=hf:{d}"], tmp_path, "cpu")["other"].startswith(f"hf:{d}: "), "a row of the table, not the end of the stage"

def test_a_checkpoint_of_open_clips_trainer_is_loaded(tmp_path):
    clip = C.build_clip(seed=3, device="cpu")
    sd, opt = clip.model.state_dict(), C._optimizer(clip.model, 1e-3, .1)
    torch.save(dict(epoch=1, name="run", state_dict={f"module.{k}":v for k,v in sd.items()}, optimizer=opt.state_dict()), tmp_path/"epoch_1.pt")
    torch.save(sd, tmp_path/"bare.pt")
    for f in ("epoch_1.pt","bare.pt"): np.testing.assert_allclose(C.probe(C.load_clip(f"tiny:{tmp_path/f}", "cpu")), C.probe(clip), atol=1e-6)
    torch.save(dict(state_dict=sd, extra=SimpleNamespace()), tmp_path/"odd.pt")
    with pytest.raises(PathgenError, match="odd.pt: cannot be loaded"): C.load_clip(f"tiny:{tmp_path/'odd.pt'}", "cpu")

@pytest.mark.parametrize("form", ["", "hf"])
def test_the_code_of_a_model_card_runs_in_its_folder(tmp_path, monkeypatch, capsys, form):
    import yaml
    clip = C.build_clip(seed=3, device="cpu")
    C.save_clip(clip, tmp_path/"own", "Words on it.", "apache-2.0"); C.save_hf(clip, tmp_path/"own/hf", "Words on it.", "apache-2.0")
    monkeypatch.chdir(tmp_path/"own"/form)
    head, text = (tmp_path/"own"/form/"README.md").read_text().split("---\n")[1:]
    assert yaml.safe_load(head)["license"] == "apache-2.0" and text.startswith("# own\n") and "Words on it." in text and str(tmp_path) not in text
    code = text.split("```python\n")[1].split("```")[0].strip()
    assert len(code.splitlines()) == 5
    exec(code, {})
    assert "[" in capsys.readouterr().out

def test_the_form_of_transformers_keeps_quickgelu(tmp_path):
    C.register("twin"); C.register("twin-quickgelu", C.TINY | dict(quick_gelu=True))
    clip = C.build_clip("twin-quickgelu", seed=3, device="cpu")
    back = C.load_clip(f"hf:{C.save_hf(clip, tmp_path/'hf')}", "cpu")
    np.testing.assert_allclose(C.probe(back), C.probe(clip), atol=1e-4)
    assert back.config["quick_gelu"] and np.abs(np.array(C.probe(clip))-C.probe(C.build_clip("twin", seed=3, device="cpu"))).max() > 1e-3

def test_every_epoch_has_its_order_and_processes_share_it(monkeypatch):
    clip, n = C.build_clip(seed=0, device="cpu"), 24
    texts, seen = [f"w{i}" for i in range(n)], []
    def orders(rank, world, epoch):
        monkeypatch.setattr(C, "crew", lambda: (rank, world))
        b = C.Batches(clip, np.zeros((n,112,112,3), np.uint8), texts, 8, 5)
        monkeypatch.setattr(b, "_images", lambda order: iter(seen.append(order.copy()) or []))
        b.set_epoch(epoch); list(b)
        return seen.pop()
    one = [orders(0, 1, e) for e in (0,1)]
    assert (one[0] != one[1]).any() and all(sorted(o.ravel()) == list(range(n)) for o in one) and (orders(0, 1, 0) == one[0]).all()
    for e in (0,1):
        shares = [orders(r, 4, e) for r in range(4)]
        assert all((np.sort(np.concatenate(step)) == np.sort(whole)).all() for *step,whole in zip(*shares, one[e])), "of each batch all, and none twice"

def test_half_precision_encodes_from_a_copy_and_trains_whole_weights():
    whole, quick = C.build_clip("tiny", 0, "cpu"), C.build_clip("tiny", 0, "cpu")
    whole.precision, quick.precision = "fp32", "pure_bf16"
    ims = np.random.default_rng(0).integers(0, 256, (4,112,112,3), np.uint8)
    assert ((v := quick.encode_images(ims))*whole.encode_images(ims)).sum(1).min() > .999 and v.dtype == np.float32
    assert C.encoder_of(quick) is C.encoder_of(quick) is not quick.model and next(quick.model.parameters()).dtype == torch.float32
    quick.model.output_dict = True
    light = C._light(quick.model, torch.bfloat16)
    out = light(torch.randn(2,3,112,112, dtype=torch.bfloat16), quick.tokenizer(["fat","mucin"]))
    out["image_features"].sum().backward()
    assert quick.model.visual.conv1.weight.grad.dtype == torch.float32
    C.fit(quick, ims, ["fat","mucin","glands","necrosis"], 2, 4, .01)
    assert abs(quick.encode_images(ims)-v).max() > .01, "the copy is made anew of trained weights"
