"LLaVA: a killed training ends in the same weights, answers do not depend on the batch, and folders that are not whole are refused."
import json, os, shutil, signal, subprocess, sys, time
import numpy as np, psutil, pytest, torch
from PIL import Image
from conftest import ROOT
from pathgen import chat, lmm as L
from pathgen.clip import build_clip, save_clip
from pathgen.core import PathgenError

SAYS = ["Fused, cribriform glands.", "Mature adipocytes with large pale vacuoles.", "Small dark nuclei."]
COLOURS = np.array([[150,60,150],[240,230,240],[120,120,200]])
SEEN = np.stack([np.full((112,112,3), c, np.uint8) for c in COLOURS])

def make(seed=1, sees=True):
    tok = L.make_tokenizer(SAYS*3 + ["Describe this patch in detail."])
    llm = L.build_llm(tok, seed, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    return L.build_lmm(build_clip(seed=2, device="cpu"), llm, tok, seed=seed) if sees else L.Lmm(llm.eval(), tok, "untrained", "-")

def talks(m, n=48): return L.Talks(m, [dict(prompt="Describe.", answer=SAYS[k%3], **(dict(image=k%3) if m.sees else {})) for k in range(n)], SEEN)

@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    m, d = make(), tmp_path_factory.mktemp("taught")
    L.train_lmm(m, talks(m, 96), d/"points", L.BOTH, epochs=4, batch=8, lr=4e-3)
    return L.load_lmm(L.save_lmm(m, d/"agent", dict(role="describe", prompt_hash="other"), "For a test."), "cpu")

def test_it_learns_and_a_folder_keeps_it(taught): assert taught.generate(["Describe."]*3, list(SEEN), 20) == SAYS

def test_a_batched_answer_is_the_single_one(taught):
    g = np.random.default_rng(0)
    ask = ["Describe."*int(k) for k in g.integers(1, 9, 13)]
    ims = [g.integers(0, 256, (*g.integers(40, 300, 2),3), dtype=np.uint8) for _ in ask]
    assert taught.generate(ask, ims, 24) == [taught.generate([a], [i], 24)[0] for a,i in zip(ask, ims)]

def test_images_of_any_mode(taught):
    im = Image.fromarray(SEEN[1])
    assert len(set(taught.generate(["Describe."]*3, [im, im.convert("RGBA"), SEEN[1]], 20))) == 1
    assert taught.generate(["Describe."], [im.convert("L")], 20)[0]
    with pytest.raises(PathgenError, match="2 prompts came with 1 images"): taught.generate(["a","b"], [im])

def test_transformers_alone_opens_it(taught):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    m, p = AutoModelForImageTextToText.from_pretrained(taught.name), AutoProcessor.from_pretrained(taught.name)
    said = [dict(role="user", content=[dict(type="image", image=Image.fromarray(SEEN[0])), dict(type="text", text="Describe.")])]
    b = p.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    b.pop("token_type_ids", None)
    ids = m.generate(**b, max_new_tokens=20, do_sample=False)
    assert p.decode(ids[0,b["input_ids"].shape[1]:], skip_special_tokens=True).strip() == SAYS[0]

def test_the_card_says_what_a_model_is(taught):
    card = open(f"{taught.name}/README.md").read()
    assert card.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0\npipeline_tag: image-text-to-text\n") and "\nFor a test.\n" in card
    assert "a language model (llama, 2 layers), a tower that sees (clip_vision_model, 112 px)" in card and f"{sum(p.numel() for p in taught.model.parameters())/1e6:,.1f} million weights" in card
    assert "AutoModelForImageTextToText.from_pretrained(" in card and "synthetic" not in card
    assert L.taught_by(1200, "hub/llama", None) == "Taught 1,200 conversations by pathgen, starting from hub/llama."

def make_qwen(folder):
    "A random Qwen2-VL, which takes images of any size, with a tokenizer of bytes."
    from test_endpoint import TEMPLATE, tiny_tokenizer
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor
    tok = tiny_tokenizer()
    names = dict(image_token_id="<image>", video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")
    tok.add_special_tokens(dict(additional_special_tokens=[*names.values()]), replace_extra_special_tokens=False)
    at = {k:tok.convert_tokens_to_ids(v) for k,v in names.items()}
    text = dict(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
                pad_token_id=0, bos_token_id=1, eos_token_id=3, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2,3,3]))
    eye = dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, patch_size=14)
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=eye, **at)).save_pretrained(folder)
    look = "<|vision_start|><image><|vision_end|>"
    Qwen2VLProcessor(Qwen2VLImageProcessor(), tok, Qwen2VLVideoProcessor(), chat_template=TEMPLATE.replace("<image>", look)).save_pretrained(folder)
    return folder

def test_a_general_model_of_another_kind_is_asked_about_images(tmp_path):
    from pathgen.describe import DESCRIBE
    who = f"hf:{make_qwen(tmp_path/'qwen')}"
    m = L.load_lmm(tmp_path/"qwen", "cpu")
    assert m.px is None and m.sees and m.role is None and "a tower that sees (qwen2_vl" in L._parts(m)
    seen = [np.full((h,w,3), v, np.uint8) for h,w,v in ((84,84,9),(112,56,200))]
    a, b = m.generate(["Describe."]*2, seen, 12), [m.generate(["Describe."], [im], 12)[0] for im in seen]
    assert a == b, "each image in its own size"
    said = chat.ask_many(DESCRIBE, who, [dict(source="colon", image=im) for im in seen], retries=0, device="cpu", max_tokens=8)
    assert all("no JSON object in the answer" in str(e) for e in said), "a random model says nothing that fits"
    assert chat.provenance(DESCRIBE, who)["decoding"] == "greedy, 1024 tokens at most"

def weights(m): return {k:v.clone() for k,v in m.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize("broken", [False, True])
def test_a_killed_training_ends_in_the_same_weights(tmp_path, broken):
    class Killed(L.Talks):
        left = 30
        def __getitem__(self, i):
            self.left -= 1
            if self.left < 0: raise KeyboardInterrupt
            return super().__getitem__(i)
    whole, cut = make(), make()
    L.train_lmm(whole, talks(whole), tmp_path/"a", L.BOTH, epochs=1, batch=4)
    t = talks(cut); k = Killed(cut, t.rows, t.images)
    with pytest.raises(KeyboardInterrupt): L.train_lmm(cut, k, tmp_path/"b", L.BOTH, epochs=1, batch=4)
    assert sorted(p.name for p in (tmp_path/"b").glob("checkpoint-*")) == ["checkpoint-6"]
    if broken:
        shutil.copytree(tmp_path/"b/checkpoint-6", tmp_path/"b/checkpoint-9")
        (tmp_path/"b/checkpoint-9/trainer_state.json").write_text('{"global_step": 9')
    again = make()
    losses = L.train_lmm(again, talks(again), tmp_path/"b", L.BOTH, epochs=1, batch=4)
    assert len(losses) == 12 and same(weights(whole), weights(again))
    ended = make()
    assert L.train_lmm(ended, talks(ended), tmp_path/"b", L.BOTH, epochs=1, batch=4) == losses and same(weights(whole), weights(ended))

TOGETHER = dict(parts=L.BOTH, epochs=2, batch=4, processes=2, saves=.5)
KILLED = "import test_lmm as t; m = t.make(); t.L.train_lmm(m, t.talks(m), 'cut', **t.TOGETHER)"

def members(folder): return [p for p in psutil.process_iter(["cwd","cmdline"]) if p.info["cwd"] == str(folder) and "crew_member" in " ".join(p.info["cmdline"] or [])]

def test_two_processes_that_are_killed_go_on_to_the_arithmetic_of_one(tmp_path):
    one, whole, again = make(), make(), make()
    alone = L.train_lmm(one, talks(one), tmp_path/"one", **TOGETHER | dict(batch=8, processes=1))
    calm = L.train_lmm(whole, talks(whole), tmp_path/"whole", **TOGETHER)
    assert len(calm) == 12 and np.allclose(alone, calm, atol=.05), "images are turned in other ways, words are the same"
    env = os.environ | dict(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT/'tests'}", PATHGEN_PROGRESS=str(tmp_path/"progress"))
    p = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=env, start_new_session=True)
    half = tmp_path/"cut/checkpoint-6/trainer_state.json"
    while not (half.exists() and half.read_text().rstrip().endswith("}")): assert p.poll() is None; time.sleep(.05)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    while members(tmp_path/"cut"): time.sleep(.1)
    assert not (tmp_path/"cut/end").exists(), "they write no longer when their caller is gone"
    said = half.read_text()
    half.write_text(said.replace('"loss": ', '"loss": 100'))
    losses = L.train_lmm(again, talks(again), tmp_path/"cut", **TOGETHER)
    assert len(losses) == 12 and min(losses[:6]) >= 100 > max(losses[6:]), "the first half is that of the checkpoint, whose losses were marked"
    before = [h["loss"] for h in json.loads(said)["log_history"]]
    assert before+losses[6:] == calm and same(weights(whole), weights(again))

def test_a_batch_that_several_processes_cannot_fill(tmp_path):
    m = make(sees=False)
    with pytest.raises(PathgenError, match="do not fill a batch of 64: lower batch or processes"): L.train_lmm(m, talks(m), tmp_path, batch=32, processes=2)

def test_shards_are_asked_for_in_words_that_the_trainer_takes(tmp_path):
    args = L._arguments("cpu", tmp_path, 1, 4, 1e-3, 0, .25, 1, True, sharded=True)
    plugin = args.fsdp_plugin_args
    assert plugin["fsdp_version"] == 2 and plugin["state_dict_type"] == "FULL_STATE_DICT" and plugin["activation_checkpointing"] and not args.activation_checkpointing
    assert plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP" and "LlamaDecoderLayer" in make().model._no_split_modules

def test_training_starts_in_single_precision_on_any_device(monkeypatch, tmp_path):
    L.save_lmm(make(sees=False), tmp_path/"m")
    monkeypatch.setattr(L, "pick_device", lambda d: "cuda" if d == "auto" else d)
    start = L._untaught([], None, tmp_path/"m", None, 0)
    assert {p.dtype for p in start.model.parameters()} == {torch.float32}, "steps of 2e-5 are lost in bfloat16"

LISTS = """{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content | selectattr('type', 'equalto', 'image') %}<image>
{% endfor %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

@pytest.mark.parametrize("clip", [False, True])
def test_a_template_that_loses_plain_text_or_ends_no_answer_is_not_taught(tmp_path, clip):
    m = make()
    m.tokenizer.chat_template = m.processor.chat_template = LISTS
    L.save_lmm(m, tmp_path/"m")
    start = L._untaught([], save_clip(build_clip("tiny", device="cpu"), tmp_path/"clip") if clip else None, tmp_path/"m", None, 0)
    row = talks(start, 1).rows[0]
    ids, spans = L._train_ids(start, row | dict(more=[("And fat?", "No fat.")]))
    said = start.tokenizer.decode(ids)
    assert row["prompt"] in said and "And fat?" in said and "No fat.</s>" in said and start.processor.chat_template == L.TEMPLATE
    assert start.tokenizer.decode(ids[slice(*spans[1])]).strip() == "No fat.</s>"

def test_stage_one_moves_the_projector_alone(tmp_path):
    m = make(); old = weights(m)
    L.train_lmm(m, talks(m), tmp_path, L.PROJECTOR, epochs=1, batch=8)
    moved = {k.split(".")[1] for k,v in weights(m).items() if not torch.equal(v, old[k])}
    assert moved == {"multi_modal_projector"}

def test_a_loss_that_is_no_number_is_refused(tmp_path):
    m = make(sees=False)
    with torch.no_grad(): next(m.model.parameters()).fill_(float("nan"))
    with pytest.raises(PathgenError, match="no longer a number at step 1"): L.train_lmm(m, talks(m), tmp_path, batch=8)
    with pytest.raises(PathgenError, match="do not fill a batch of 64"): L.train_lmm(m, talks(m), tmp_path, batch=64)

def copy(m, to): return shutil.copytree(m.name, to)

def test_folders_that_are_not_whole(taught, tmp_path):
    with pytest.raises(PathgenError, match="cannot be loaded"): L.load_lmm(tmp_path/"nothing", "cpu")
    d = copy(taught, tmp_path/"cut")
    w = next(d.glob("*.safetensors")); w.write_bytes(w.read_bytes()[:5000])
    with pytest.raises(PathgenError, match="cannot be loaded"): L.load_lmm(d, "cpu")
    blind = make(sees=False); blind.processor.chat_template = None
    with pytest.raises(PathgenError, match="no chat template"): L.load_lmm(L.save_lmm(blind, tmp_path/"base"), "cpu")

def test_weights_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    read, digest = [], L.file_digest
    monkeypatch.setattr(L, "file_digest", lambda p: read.append(p.name) or digest(p))
    f = tmp_path/"model.safetensors"
    f.write_bytes(b"one")
    first = L.weights_hash(tmp_path)
    assert L.weights_hash(tmp_path) == first and len(read) == 1
    (tmp_path/"other").write_bytes(b"two")
    os.utime(tmp_path/"other", ns=(f.stat().st_atime_ns, f.stat().st_mtime_ns))
    os.replace(tmp_path/"other", f)
    assert L.weights_hash(tmp_path) != first and len(read) == 2, "also where size and time are those of the file before"

def test_pickled_weights_are_not_opened(taught, tmp_path):
    d = copy(taught, tmp_path/"pickled")
    for w in d.glob("*.safetensors"): w.unlink()
    torch.save(taught.model.state_dict(), d/"pytorch_model.bin")
    with pytest.raises(PathgenError, match="cannot be loaded"): L.load_lmm(d, "cpu")

def test_an_agent_keeps_to_its_role_and_its_prompt(taught):
    from pathgen.describe import DESCRIBE
    from pathgen.revise import REVISE
    given = dict(source="colon", image=SEEN[0], text="Fat.")
    with pytest.raises(PathgenError, match="is an agent for describe, not revise"): chat.ask(REVISE, f"hf:{taught.name}", given, device="cpu")
    with pytest.raises(PathgenError, match="trained with another prompt"): chat.ask(DESCRIBE, f"hf:{taught.name}", given, device="cpu")
