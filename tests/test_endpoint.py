"Endpoints: a server on loopback that behaves, and one that does not; nothing is paid for twice."
import json, os, re, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pandas as pd, pytest
from pydantic import BaseModel
from pathgen import chat
from pathgen.chat import AnswerError, Role, ask, ask_many, estimate, serves
from pathgen.core import DEIDENTIFIED, PathgenError, read_table, write_table, write_text

class Word(BaseModel): word: str
ROLE = Role("echo", "Say {word}.", Word)
GOOD = '{"word": "gland"}'

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def reply(self, status, body, **headers):
        raw = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for k,v in ({"Content-Type":"application/json", "Content-Length":str(len(raw))} | headers).items(): self.send_header(k, v)
        self.end_headers(); self.wfile.write(raw)
    def say(self, text): self.reply(200, dict(id="1", object="chat.completion", created=0, model="m", choices=[dict(index=0, finish_reason="stop", message=dict(role="assistant", content=text))]))
    def do_GET(self): self.reply(200, dict(object="list", data=[dict(id="m", object="model", created=0, owned_by="us")]))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((body, self.headers["Authorization"]))
            todo = self.server.script.pop(0) if self.server.script else None
        if todo is None: return self.say(self.server.answer(body))
        todo(self)

def cut(h): h.connection.close()
def wait(h): time.sleep(1.2); h.say(GOOD)
def status(code, **headers): return lambda h: h.reply(code, dict(error=dict(message="patient Jane Public")), **headers)
def text(t): return lambda h: h.say(t)

@pytest.fixture
def server(monkeypatch):
    "A server whose next replies can be scripted; `asked` holds what it was sent."
    for k in ("OPENAI_API_KEY","OPENAI_BASE_URL"): monkeypatch.delenv(k, raising=False)
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.asked, s.script, s.lock, s.answer = [], [], threading.Lock(), lambda body: GOOD
    s.provider = f"openai:m@http://127.0.0.1:{s.server_port}/v1"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()

def say(server, cache, word="gland", most=99, **kw): return ask(ROLE, server.provider, dict(word=word, **kw.pop("inputs", {})), cache=str(cache), max_requests=most, **kw).value.word

def test_an_answer_with_where_it_comes_from_is_paid_for_once(server, tmp_path):
    a = ask(ROLE, server.provider, dict(word="gland"), cache=str(tmp_path), max_requests=9)
    assert a.value.word=="gland" and a.provenance["provider"]==server.provider and a.provenance["decoding"]=="greedy"
    assert say(server, tmp_path)=="gland" and len(server.asked)==1
    body = server.asked[0][0]
    assert body["model"]=="m" and body["temperature"]==0 and body["max_tokens"]==1024 and '"word"' in body["messages"][0]["content"]
    assert serves(server.provider.partition(":")[2])==["m"]

def test_the_image_goes_along_and_another_image_is_another_request(server, tmp_path):
    import base64, io
    from PIL import Image
    for v in (0, 200): say(server, tmp_path, inputs=dict(image=np.full((9,7,3), v, np.uint8)))
    url = server.asked[1][0]["messages"][0]["content"][0]["image_url"]["url"]
    im = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert len(server.asked)==2 and im.shape==(9,7,3) and abs(int(im.mean())-200) < 3

@pytest.mark.parametrize("faults", ([status(500)]*2, [status(429, **{"Retry-After":"1"})], [cut], [status(503), cut]), ids=("500","429","cut","503 and cut"))
def test_what_passes_is_waited_for(server, tmp_path, faults):
    server.script = list(faults)
    start = time.time()
    assert say(server, tmp_path)=="gland" and len(server.asked)==len(faults)+1
    if len(faults)==1 and faults[0] is not cut: assert time.time()-start >= 1

def test_a_slow_server_is_given_up_in_one_line(server, tmp_path, monkeypatch):
    from openai import OpenAI
    monkeypatch.setattr(chat, "_client", lambda url, key: OpenAI(api_key=key, base_url=url, max_retries=0, timeout=.3))
    server.script = [wait]
    with pytest.raises(PathgenError, match=r"http://127.0.0.1:\d+/v1 does not answer in time"): say(server, tmp_path)

@pytest.mark.parametrize("code,mend", ((401,"check OPENAI_API_KEY"), (404,"does it serve m?"), (400,"see the log of the server")))
def test_a_refusal_names_the_status_and_the_mend_and_no_text(server, tmp_path, code, mend):
    server.script = [status(code)]*9
    with pytest.raises(PathgenError) as e: say(server, tmp_path)
    assert f"status {code}: {mend}" in str(e.value) and "Jane" not in str(e.value) and len(server.asked)==1

@pytest.mark.parametrize("bad", ("", "no braces", '{"word": 3}', '{"word"'), ids=("empty","no json","wrong type","cut off"))
def test_a_bad_answer_is_asked_again_with_the_reason_then_refused_and_never_kept(server, tmp_path, bad):
    server.script = [text(bad)]
    assert say(server, tmp_path)=="gland" and "did not fit" in json.dumps(server.asked[1][0]) and len(server.asked)==2
    server.script = [text(bad)]*3
    with pytest.raises(AnswerError, match="no good answer in 3 tries"): say(server, tmp_path, "stroma")
    assert len(list(tmp_path.glob("*.json")))==1

def test_a_body_that_is_no_json_is_a_bad_answer(server, tmp_path):
    server.script = [lambda h: h.reply(200, "<html>hello</html>", **{"Content-Type":"text/html"}), lambda h: h.reply(200, '{"choices": ')]
    assert say(server, tmp_path)=="gland"

def test_the_budget_counts_every_process_and_run(server, tmp_path):
    for w in "abc": say(server, tmp_path, w, most=3)
    assert say(server, tmp_path, "a", most=3)=="gland"
    with pytest.raises(PathgenError, match="the 3 requests of base.max_requests are spent"): say(server, tmp_path, "d", most=3)
    assert len(server.asked)==3

def say_many(server, cache, words, most=99, **kw): return ask_many(ROLE, server.provider, [dict(word=w) for w in words], cache=str(cache), max_requests=most, **kw)

def asked_for(body): return re.search(r"Say (\w+)", json.dumps(body))[1]

def test_many_requests_are_under_way_at_a_time_and_answers_keep_their_order(server, tmp_path):
    now, most, n = threading.Lock(), [], [0]
    def slowly(body):
        with now: n[0] += 1; most.append(n[0])
        time.sleep(.02*(ord(asked_for(body)) % 5))
        with now: n[0] -= 1
        return json.dumps(dict(word=asked_for(body)))
    server.answer = slowly
    words = list("abcdefghijklmnopabc")
    got = say_many(server, tmp_path, words, concurrency=4)
    assert [a.value.word for a in got]==words and len(server.asked)==16 and 2 <= max(most) <= 4
    assert [a.value.word for a in say_many(server, tmp_path, words)]==words and len(server.asked)==16

def test_one_bad_answer_costs_only_itself(server, tmp_path):
    server.answer = lambda body: "I am sorry." if asked_for(body)=="c" else "" if asked_for(body)=="e" and "did not fit" not in str(body) else GOOD
    got = say_many(server, tmp_path, "abcdef", retries=1)
    assert [isinstance(a, AnswerError) for a in got]==[False]*2 + [True] + [False]*3 and len(server.asked)==8
    assert sum("the answer is empty" in json.dumps(b) for b,_ in server.asked)==1 and len(list(tmp_path.glob("*.json")))==5

def test_threads_do_not_overdraw_the_budget_and_stop_when_it_is_spent(server, tmp_path):
    server.answer = lambda body: "nonsense"
    with pytest.raises(PathgenError, match="the 20 requests of base.max_requests are spent"): say_many(server, tmp_path, [f"w{i}" for i in range(16)], most=20)
    assert len(server.asked)==20

def test_a_refusal_stops_what_has_not_been_sent(server, tmp_path):
    server.answer = lambda body: time.sleep(.05) or GOOD
    server.script = [status(401)]
    with pytest.raises(PathgenError, match="status 401"): say_many(server, tmp_path, [f"w{i}" for i in range(60)], concurrency=3)
    assert len(server.asked) < 12

def test_the_cost_is_told_before_the_first_request_and_counts_what_is_not_paid(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    say_many(server, tmp_path, "ab")
    line, = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"echo: openai:m@http://127\.0\.0\.1:\d+/v1: 2 requests \(99 left\), about \d+ tokens in, at most 2,048 out", line)
    inputs = [dict(word=w, image=np.zeros((672,672,3), np.uint8)) for w in "ab"] + [dict(word="a")]
    cost = estimate(ROLE, server.provider, inputs, cache=str(tmp_path), max_requests=99)
    assert (cost["requests"], cost["left"], len(server.asked))==(2, 97, 2) and 2*765 < cost["input_tokens"] < 2*765+200
    monkeypatch.setenv("PATHGEN_PROGRESS", str(tmp_path/"bars"))
    say_many(server, tmp_path, "abc"), say_many(server, tmp_path, "abc")
    assert (tmp_path/"bars").read_text().count("\n")==1 and capfd.readouterr().err==""

def test_what_the_budget_does_not_allow_is_refused_before_the_first_request(server, tmp_path):
    say(server, tmp_path, "a", most=3)
    with pytest.raises(PathgenError, match="role echo: 3 requests are needed and 2 are left: raise base.max_requests from 3 to 4 or more"): say_many(server, tmp_path, "abcd", most=3)
    assert len(server.asked)==1 and len(say_many(server, tmp_path, "abcd", most=4))==4

def test_nobody_there(tmp_path, monkeypatch):
    from openai import OpenAI
    monkeypatch.setattr(chat, "_client", lambda url, key: OpenAI(api_key=key, base_url=url, max_retries=0))
    with pytest.raises(PathgenError, match="cannot be reached: start the server"):
        ask(ROLE, "openai:m@http://127.0.0.1:9/v1", dict(word="a"), cache=str(tmp_path), max_requests=9)

def test_the_key_comes_from_the_environment_and_stays_there(server, tmp_path, monkeypatch):
    with pytest.raises(PathgenError, match="https://api.openai.com/v1 wants a key: set OPENAI_API_KEY"):
        ask(ROLE, "openai:m", dict(word="a"), cache=str(tmp_path), max_requests=9)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    say(server, tmp_path)
    assert server.asked[0][1]=="Bearer sk-secret" and not any(b"sk-secret" in p.read_bytes() for p in tmp_path.iterdir())

def reports(root, n):
    "A data folder with `n` reports."
    rows = []
    for i in range(n):
        p = root/f"in/R{i}.txt"
        write_text(f"Microscopic Description: Sections show infiltrating glands in case {i}.\n", p)
        rows.append(dict(report_id=f"R{i}", patient_id=f"P{i}", path=str(p)))
    write_table(pd.DataFrame(rows), root/"data/report_files.parquet")

def parts(body): return json.dumps(dict(parts=[f"Infiltrating glands in case {re.search('case ([0-9]+)', json.dumps(body))[1]}."]))

def launch(stage, root, provider, workers=1, device="auto"):
    "One of the stages that ask a model, on what `given` laid down."
    from pathgen import describe, reports, revise, summarize
    if stage in LESSONS: return lessons(stage, root, provider, workers)
    how = dict(data=root/"data", seed=0, workers=workers, max_failed=.5, provider=provider, mpp_if_missing=None, device=device)
    if stage == "reports": return reports.run_reports(root/"data", provider, 50, 3, 1, .5, workers)[0]
    if stage == "describe": return describe.run_describe(**how)[0]
    if stage == "revise": return revise.run_revise(**how, trials_per_slide=0)[0]
    return summarize.run_summarize(provider, root/"data", workers, .5, device=device)[0]

def lessons(stage, root, provider, workers):
    "What a teacher has an agent learn, on what `given` laid down: a table; nothing is trained."
    from pathgen import train_agent as ta
    role = stage.removesuffix("_train")
    told, owed = ta._lessons_of(role, root/"data", 0, workers, .5, provider, 30, .64, 1, .001, 0, .001, True, dict(cache=str(root/"data/chat"), max_requests=1000, device="cpu"))
    assert not any(owed.values())
    return pd.DataFrame(told[-1][0]).rename(columns=dict(answer="text"))

def given(root, n=2):
    "A data folder for any of them: reports, patches of two slides, descriptions, revisions."
    from test_describe import folder
    reports(root, 2*n)
    patches = read_table(folder(root/"data", n=n)/"patches.parquet")
    texts = patches[patches.kept].assign(text=[f"Glands in case {i}." for i in range(2*n)])[["patch_id","slide_id","text"]]
    for name in ("descriptions","revisions"): write_table(texts, root/f"data/text/{name}.parquet")
    pairs = texts.assign(pair_id=texts.patch_id, image=[f"patches/{r.slide_id}/{r.patch_id}.jpg" for r in texts.itertuples()], source="quilt", split="train", caption=texts.text)
    write_table(pairs[["pair_id","image","caption","source","split"]], root/"data/init/pairs.parquet")
    write_table(pairs[["pair_id","image","caption","text","source"]].assign(text=[f"Necrosis is seen. Infiltrating glands in case {i}." for i in range(2*n)]), root/"data/agents/enhanced.parquet")

STAGES = ("reports","describe","revise","summarize")
LESSONS = ("describe_train","revise_train","summarize_train")

RUN = "import sys; from pathlib import Path; from test_endpoint import launch; launch(sys.argv[1], Path(sys.argv[2]), sys.argv[3], 2)"
def run(stage, root, provider): return subprocess.Popen([sys.executable, "-c", RUN, stage, str(root), provider], stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    env=os.environ | {"PYTHONPATH":os.pathsep.join(map(str, (Path(__file__).parent.parent, Path(__file__).parent))), "IN_TEST":"1"})

def fits(body):
    "An answer that suits whichever role is asked."
    n = re.search("case ([0-9]+)", json.dumps(body))
    return json.dumps(dict(parts=[said := f"Infiltrating glands in case {n[1] if n else 'unknown'}."], text=said, caption=said, operations=[], op="delete", before="Necrosis is seen.", after=""))

@pytest.mark.parametrize("stage", STAGES+LESSONS)
def test_after_a_kill_no_finished_request_is_sent_again(server, tmp_path_factory, stage):
    calm, tmp_path = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("killed")
    for root in (calm, tmp_path): given(root, 15)
    server.answer = fits
    whole, n = launch(stage, calm, server.provider), len(server.asked)
    server.asked.clear()
    def slowly(body): time.sleep(.4); return fits(body)
    server.answer = slowly
    p, end = run(stage, tmp_path, server.provider), time.time()+90
    answers = lambda: len(list((tmp_path/"data/chat").glob("[!.]*.json"))) # not those half written
    while answers() < 3 and time.time() < end and p.poll() is None: time.sleep(.02)
    os.killpg(p.pid, signal.SIGKILL)
    log = p.communicate()[0]
    time.sleep(1)
    kept, before = answers(), len(server.asked)
    server.answer = fits
    again = launch(stage, tmp_path, server.provider, workers=2)
    assert 3 <= kept <= before < n and len(server.asked)-before == n-kept, log
    pd.testing.assert_frame_equal(again, whole)
    pd.testing.assert_frame_equal(launch(stage, tmp_path, server.provider), whole)
    assert len(whole) >= 30 and whole.text.str.len().min() > 6 and len(server.asked)-before == n-kept, "and a relaunch sends nothing"

@pytest.mark.parametrize("stage,table", (("describe","descriptions"), ("revise","revisions"), ("summarize","captions")))
def test_garbage_about_a_patch_ends_in_the_table_of_failures_and_never_in_a_text(server, tmp_path, stage, table):
    given(tmp_path)
    known, bad = [], ("I am sorry.", json.dumps(dict(text=" ", caption=" ", operations="none")))
    def answer(body):
        about = re.search("case [0-9]+|base64,[^\"]+", json.dumps(body))[0]
        with server.lock:
            if about not in known: known.append(about)
        return dict(enumerate(bad)).get(known.index(about)) or fits(body)
    server.answer = answer
    df, failed = launch(stage, tmp_path, server.provider), read_table(tmp_path/f"data/text/{table}_failed.parquet")
    assert len(df)==2 and df.text.str.len().min() > 10 and len(failed)==2 and not set(df.patch_id) & set(failed.patch_id)
    assert failed.error.str.contains("no good answer in 3 tries").all() and len(server.asked)==2 + 2*3
    assert len(launch(stage, tmp_path, server.provider))==2 and len(server.asked)==8

def test_a_caption_of_an_endpoint_that_stays_too_long_is_cut_in_the_end(server, tmp_path):
    given(tmp_path)
    server.answer = lambda body: json.dumps(dict(caption="Glands are seen. " + "Nests of cells are seen too. "*20))
    df = launch("summarize", tmp_path, server.provider)
    assert len(df)==4 and df.cut.all() and df.text.str.endswith("seen too.").all() and len(server.asked)==4*2
    assert sum("at most 77 fit: write it shorter" in json.dumps(b) for b,_ in server.asked)==4, "the same complaint is not sent a second time"
    for p in (tmp_path/"data/text/captions/.done").glob("*.json"): p.unlink()
    pd.testing.assert_frame_equal(launch("summarize", tmp_path, server.provider), df)
    assert len(server.asked)==4*2, "a slide that was killed before its end finds the whole exchange on the disk"

def test_garbage_ends_in_the_error_table_and_never_in_a_row(server, tmp_path):
    from pathgen.reports import run_reports
    reports(tmp_path, 4)
    server.answer = lambda body: "I am sorry." if "case 2" in json.dumps(body) else parts(body)
    df, *_ = run_reports(tmp_path/"data", server.provider, 50, 3, 1, .5, 1)
    errors = read_table(tmp_path/"data/reports/errors.parquet")
    assert len(df)==3 and df.text.str.len().min() > 10 and errors.item.tolist()==["R2"] and "no good answer in 2 tries" in errors.error[0]
    assert "case 2" not in errors.error[0]

@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_patients_leaves_this_machine_unless_it_is_deidentified(server, tmp_path, stage, monkeypatch):
    given(tmp_path)
    away = "openai:m@http://machine.example/v1"
    monkeypatch.setattr(chat, "_client", lambda url, key: pytest.fail(f"{url} is asked"))
    with pytest.raises(PathgenError, match="would send private data off this machine: set base.deidentified: true"): launch(stage, tmp_path, away)
    monkeypatch.setenv(DEIDENTIFIED, "true")
    with pytest.raises(PathgenError, match="wants a key"): launch(stage, tmp_path, away)

def test_no_pair_is_enhanced_elsewhere_unless_it_is_deidentified(tmp_path):
    from test_train_agent import run
    with pytest.raises(PathgenError, match="would send private data off this machine: set base.deidentified: true"): run(tmp_path, provider="openai:gpt-4o")

def test_doctor_says_of_each_endpoint_whether_it_answers(server, monkeypatch):
    from pathgen.cli import check_endpoints
    other = server.provider.replace("openai:m@", "openai:other@")
    said = list(check_endpoints({server.provider, other, "openai:m@http://127.0.0.1:9/v1", "openai:gpt-4o"}))
    how = {line.split(" ")[0].rstrip(":"):(state, line) for state,line in said}
    assert len(said)==4 and how[server.provider][0]=="ok" and how[other]==("warn", f"{other} answers, but does not list that model")
    assert "cannot be reached" in next(l for s,l in said if s=="fail" and ":9/" in l) and "OPENAI_API_KEY" in next(l for s,l in said if "gpt-4o" in l)

@pytest.mark.parametrize("value,says", (("openia:m","the providers are"), ("openai","needs a model"), ("openai:m@localhost","write openai:MODEL@URL"), ("builtin:m","takes no model")))
def test_a_wrong_provider_is_refused_before_any_work(value, says):
    from pathgen.cli import check_provider
    with pytest.raises(PathgenError, match=says) as e: check_provider("params.yaml: describe.provider", value)
    assert str(e.value).startswith(f"params.yaml: describe.provider is '{value}'")

# ---- a real server: `transformers serve` with tiny models that are trained on the spot

TEMPLATE = """{% for m in messages %}<s>{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}\
{% if c['type']=='image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"""

def tiny_tokenizer():
    "A tokenizer of bytes with a chat template."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    names = ["<pad>","<s>","<a>","</s>","<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    t = Tokenizer(models.BPE({n:i for i,n in enumerate(names)}, []))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE,
                                   additional_special_tokens=["<a>","<image>"], padding_side="left", extra_special_tokens=dict(image_token="<image>"))

def tiny_llama(tok):
    "Two layers of 64."
    from transformers import LlamaConfig
    return LlamaConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=1024,
                       pad_token_id=0, bos_token_id=1, eos_token_id=3)

def tiny_llava(tok):
    "A LLaVA of 32 px images, and its processor."
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    eye = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    seen = CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=eye, text_config=tiny_llama(tok), image_token_index=4, image_seq_length=4))
    return model, LlavaProcessor(seen, tok, patch_size=16, vision_feature_select_strategy="default", chat_template=TEMPLATE, image_token="<image>", num_additional_image_tokens=1)

def overtrain(model, batch, steps=600):
    "Train until the answers of the batch are known by heart."
    import torch
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        opt.zero_grad(), loss.backward(), opt.step()
        if loss < .005: return model.eval()
    raise AssertionError(f"not learnt: {loss}")

def cached(root, name, *parts):
    "Save a model where the hub's cache would have it."
    hub = root/"hub"/f"models--{name.replace('/','--')}"
    write_text("0"*40, hub/"refs/main")
    for p in parts: p.save_pretrained(hub/"snapshots"/("0"*40))

def make_models(root):
    "`pathgen/tiny` answers every prompt of ROLE alike; `pathgen/tiny-llava` says whether an image is dark or light."
    import torch
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    tok = tiny_tokenizer()
    def labelled(x, answers):
        n = max(len(tok(a, add_special_tokens=False).input_ids) for a in answers)
        return dict(x, labels=torch.where(torch.arange(x["input_ids"].shape[1]) < x["input_ids"].shape[1]-n, -100, x["input_ids"]))
    prompt = lambda words: [tok.apply_chat_template(chat.message(ROLE, f"Say {w}."), add_generation_prompt=True, tokenize=False) for w in words]
    x = tok([p + GOOD + "</s>" for p in prompt(["gland","fat","stroma","nest"])], padding=True, add_special_tokens=False, return_tensors="pt")
    x.pop("token_type_ids", None)
    cached(root, "pathgen/tiny", overtrain(LlamaForCausalLM(tiny_llama(tok)), labelled(x, [GOOD+"</s>"])), tok)
    model, processor = tiny_llava(tok)
    answers = [f'{{"word": "{w}"}}</s>' for w in ("dark ","light")]*2
    ims = [np.full((48,48,3), v, np.uint8) for v in (0,255,50,205)]
    texts = ["<s><image>" + chat.told(ROLE, f"Say {w}.") + "<a>" + a for w,a in zip("shade shade tone tone".split(), answers)]
    y = processor(text=texts, images=ims, padding=True, return_tensors="pt", add_special_tokens=False)
    cached(root, "pathgen/tiny-llava", overtrain(model, labelled(y, answers)), processor)

@pytest.fixture
def served(tmp_path, monkeypatch):
    "`transformers serve` on a free port of loopback, with the two tiny models in a cache of its own; they are made while it starts."
    import socket, torch
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | dict(HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path/"hub"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    serve = [Path(sys.executable).parent/"transformers", "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path/"log", "w") as log: p = subprocess.Popen(serve, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        make_models(tmp_path)
        yield f"http://127.0.0.1:{port}/v1", p, tmp_path/"log"
    finally:
        torch.set_num_threads(threads)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()

def wait_until_served(url, p, log, seconds=120):
    "The models that the server offers, once it answers; it lists them once and for all, so they must be there by then."
    end = time.time()+seconds
    while time.time() < end and p.poll() is None:
        try: return serves(f"any@{url}")
        except PathgenError: time.sleep(.5)
    raise AssertionError(f"no server: {log.read_text()[-2000:]}")

def test_a_real_server_answers_with_text_and_sees_images(served, tmp_path):
    url = served[0]
    assert sorted(wait_until_served(*served))==["pathgen/tiny","pathgen/tiny-llava"]
    cost = dict(cache=str(tmp_path/"chat"), max_requests=9)
    a = ask(ROLE, f"openai:pathgen/tiny@{url}", dict(word="mucus"), **cost)
    assert a.value.word=="gland" and a.provenance["model"]==f"pathgen/tiny@{url}"
    shades = [dict(word="tone", image=np.full((672,672,3), v, np.uint8)) for v in (10, 245, 30)]
    got = ask_many(ROLE, f"openai:pathgen/tiny-llava@{url}", shades, **cost)
    assert [a.value.word.strip() for a in got]==["dark","light","dark"]
