"""Roles, providers, retries and privacy of `pathgen.chat`."""
import pytest
from pydantic import BaseModel
from pathgen import chat
from pathgen.chat import AnswerError, Misfit, Provider, Role, allow, ask, ask_many, builtin, check, provenance, register, render
from pathgen.core import DEIDENTIFIED, PathgenError

class Count(BaseModel): n: int

ROLE = Role("count-words", "Count the words of: {text}. {{}}", Count)
SECRET = Role("count-words", "Count the words of: {text}", Count, private=True)

@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(chat, "PROVIDERS", dict(chat.PROVIDERS))
    monkeypatch.setattr(chat, "RULES", dict(chat.RULES))

def model(answers, name="model", local=False):
    asked = []
    def call(role, prompt, inputs, attempt, complaint, **options):
        asked.append((prompt, attempt, complaint))
        return answers[min(attempt, len(answers)-1)]
    register(Provider(name, call, lambda role, **o: o.get("model", "m"), local=lambda **o: local))
    return asked

def test_prompt_keeps_braces(): assert render(ROLE, text="a b", other=1) == "Count the words of: a b. {}"

@pytest.mark.parametrize("raw", ['{"n": 2}', '```json\n{"n": 2}\n```', {"n": 2}, 'Sure. {"n": 2} Bye.'])
def test_answers_in_any_wrapping(raw): assert check(ROLE, raw).n == 2

@pytest.mark.parametrize("raw", ["two", '{"n": "two"}', "{}", '{"n": 2', None, 3])
def test_bad_answers(raw):
    with pytest.raises(ValueError): check(ROLE, raw)

def test_asked_again_with_the_complaint():
    asked = model(["nonsense", '{"m": 1}', '{"n": 3}'])
    assert ask(ROLE, "model", dict(text="x")).value.n == 3
    assert [a for _,a,_ in asked] == [0, 1, 2] and asked[0][2] is None
    assert "no JSON" in asked[1][2] and "n: Field required" in asked[2][2]

def test_gives_up_after_retries():
    asked = model(["nonsense"])
    with pytest.raises(AnswerError, match="model gave no good answer in 2 tries"): ask(ROLE, "model", dict(text="x"), retries=1)
    assert len(asked) == 2

def test_private_inputs_stay(monkeypatch):
    asked = model(['{"n": 1}'])
    with pytest.raises(PathgenError, match="base.deidentified: true"): ask(SECRET, "model", dict(text="x"))
    assert asked == []
    monkeypatch.setenv(DEIDENTIFIED, "true")
    assert ask(SECRET, "model", dict(text="x")).value.n == 1
    monkeypatch.setenv(DEIDENTIFIED, "false")
    model(['{"n": 1}'], "here", local=True)
    assert ask(SECRET, "here", dict(text="x")).value.n == 1

def test_unknown_provider_names_the_known():
    with pytest.raises(PathgenError, match="unknown provider 'gpt'.*builtin"): allow(ROLE, "gpt")

def test_rule_and_where_it_comes_from():
    @builtin("count-words")
    def count(text): return dict(n=len(text.split()))
    a = ask(ROLE, inputs=dict(text="one two"))
    assert a.value.n == 2 and a.provenance == provenance(ROLE)
    assert set(a.provenance) == {"provider", "model", "prompt_hash", "decoding"}
    assert a.provenance["prompt_hash"] != Role("count-words", "Other {text}", Count).prompt_hash

def test_role_without_rule():
    with pytest.raises(PathgenError, match="no rule for the role 'nobody'"): ask(Role("nobody", "x", Count))

def test_errors_of_a_rule_are_not_swallowed():
    @builtin("count-words")
    def broken(text): raise KeyError("bug")
    with pytest.raises(KeyError): ask(ROLE, inputs=dict(text="x"))

def many(answers, name="many"):
    "A provider that answers a list; `answers[text]` are what it says of a text, try by try."
    asked = []
    def calls(role, prompts, inputs, attempt, complaints, **options):
        asked.append(([i["text"] for i in inputs], attempt, complaints))
        return [answers[i["text"]][min(attempt, len(answers[i["text"]])-1)] for i in inputs]
    register(Provider(name, None, lambda role, **o: "m", local=lambda **o: True, calls=calls))
    return asked

def test_only_bad_answers_are_asked_again_each_with_its_own_complaint():
    asked = many(dict(a=['{"n": 1}'], b=["none", '{"n": 2}'], c=['{"n": "x"}', ValueError("no luck"), '{"n": 3}'], d=[{}]))
    got = ask_many(ROLE, "many", [dict(text=t) for t in "abcd"])
    assert [a.value.n for a in got[:3]]==[1,2,3] and isinstance(got[3], AnswerError) and "in 3 tries: n: Field required" in str(got[3])
    assert [a[:2] for a in asked]==[(["a","b","c","d"], 0), (["b","c","d"], 1), (["c","d"], 2)]
    assert asked[0][2]==[None]*4 and "no JSON" in asked[1][2][0] and asked[2][2]==["no luck", "n: Field required"]
    assert got[0].provenance==provenance(ROLE, "many")

def test_one_is_many_of_one():
    many(dict(a=["none", '{"n": 2}']))
    assert ask(ROLE, "many", dict(text="a")).value.n==2
    with pytest.raises(AnswerError, match="1 tries: no JSON object"): ask(ROLE, "many", dict(text="a"), retries=0)
    assert ask_many(ROLE, "many", [])==[]

def test_what_check_says_may_be_told_and_what_others_say_may_not():
    asked = many(dict(a=[ValueError("Jane"), '{"n": "Jane"}', {"n":1}]))
    assert ask(SECRET, "many", dict(text="a")).value.n==1
    assert asked[1][2]==["ValueError"] and "n: Input should be a valid integer" in asked[2][2][0] and "Jane" not in str(asked)

def test_an_error_of_the_provider_ends_all():
    def calls(*a, **o): raise PathgenError("the server is down")
    register(Provider("down", None, lambda role, **o: "m", calls=calls))
    with pytest.raises(PathgenError, match="the server is down"): ask_many(ROLE, "down", [dict(text="a")]*3)

def test_an_answer_may_be_held_against_what_was_asked():
    from pydantic import field_validator
    class Within(BaseModel):
        n: int
        @field_validator("n")
        @classmethod
        def of_text(cls, n, info):
            if n > len(info.context["text"].split()): raise ValueError("more words than the text has")
            return n
    role = Role("count-words", "{text}", Within)
    assert check(role, '{"n": 2}', dict(text="a b")).n==2
    with pytest.raises(Misfit, match="n: more words than the text has"): check(role, '{"n": 3}', dict(text="a b"))
    many(dict(a=['{"n": 3}', '{"n": 1}']))
    assert ask(role, "many", dict(text="a")).value.n==1

class Lmm:
    "A model on the disk, as `pathgen.lmm` gives it."
    def __init__(self, says, role=None): self.says, self.role, self.hash, self.heard = says, role, "abc", []
    def generate(self, prompts, images=None, max_tokens=256):
        self.heard.append((list(prompts), images, max_tokens))
        return [self.says(p, len(self.heard)) for p in prompts]

@pytest.fixture
def disk(monkeypatch):
    "Models by name in place of the disk; `loaded` lists what was loaded."
    import sys, types
    models, loaded = {}, []
    def load_lmm(path_or_name, device="auto"):
        loaded.append((path_or_name, device))
        return models[path_or_name]
    origin = lambda name: (models[name].hash, models[name].role)
    monkeypatch.setitem(sys.modules, "pathgen.lmm", types.SimpleNamespace(load_lmm=load_lmm, origin=origin))
    forget = lambda: (chat._lmm.cache_clear(), chat._origin.cache_clear())
    forget()
    yield types.SimpleNamespace(models=models, loaded=loaded, forget=forget)
    forget()

def test_a_general_model_gets_what_an_endpoint_gets_in_one_batch(disk):
    m = disk.models["m"] = Lmm(lambda p, n: '{"n": 3}' if "of: a" in p or n > 1 else "three")
    got = ask_many(SECRET, "hf:m", [dict(text=t) for t in "abc"], cache="x", max_requests=0, max_tokens=32)
    assert [a.value.n for a in got]==[3]*3 and disk.loaded==[("m","auto")] and [len(h[0]) for h in m.heard]==[3,2]
    first, again = m.heard[0][0][0], m.heard[1][0][0]
    assert first==chat.message(SECRET, render(SECRET, text="a"))[0]["content"] and "did not fit: no JSON object" in again
    assert m.heard[0][1:]==(None, 32)
    assert got[0].provenance==dict(provider="hf:m", model="abc", prompt_hash=SECRET.prompt_hash, decoding="greedy, 32 tokens at most")

def test_an_agent_gets_its_prompt_alone_and_is_asked_once(disk):
    import dataclasses, numpy as np
    role = dataclasses.replace(ROLE, read=lambda text: dict(n=int(text)))
    im = np.zeros((4,4,3), np.uint8)
    m = disk.models["models/a"] = Lmm(lambda p, n: "2" if "good" in p else "two", dict(role=role.name, prompt_hash=role.prompt_hash))
    good, bad = ask_many(role, "hf:models/a", [dict(text="good", image=im), dict(text="bad", image=im)])
    assert good.value.n==2 and "invalid literal for int" in str(bad)
    assert m.heard==[([render(role, text=t) for t in ("good","bad")], [im, im], 256)]
    with pytest.raises(PathgenError, match="1 of 2 inputs have no image"): ask_many(role, "hf:models/a", [dict(text="a", image=im), dict(text="b")])

def test_an_agent_of_another_job_is_refused(disk):
    disk.models["a"] = Lmm(lambda p, n: "2", dict(role="revise", prompt_hash="x"))
    with pytest.raises(PathgenError, match="a is an agent for revise, not count-words: set count-words.provider to"): ask(ROLE, "hf:a", dict(text="x"))
    disk.models["a"].role["role"] = "count-words"
    with pytest.raises(PathgenError, match="another prompt of count-words: run `pathgen run count-words_train` again"): provenance(ROLE, "hf:a")
    with pytest.raises(PathgenError, match="needs a model: write hf:PATH_OR_NAME"): allow(ROLE, "hf")
    assert disk.loaded==[] and disk.models["a"].heard==[], "which it is, is told before it is loaded"

def test_a_general_model_may_write_as_much_as_an_endpoint_and_an_agent_its_plain_text(disk):
    m = disk.models["m"] = Lmm(lambda p, n: '{"n": 3}')
    assert ask(ROLE, "hf:m", dict(text="a")).provenance["decoding"]=="greedy, 1024 tokens at most" and m.heard[0][2]==chat.MAX_TOKENS==1024
    disk.models["a"] = Lmm(lambda p, n: "3", dict(role=ROLE.name, prompt_hash=ROLE.prompt_hash))
    assert provenance(ROLE, "hf:a")["decoding"]=="greedy, 256 tokens at most"

def test_one_process_works_with_a_model_on_this_disk(monkeypatch):
    loop = dict(item_gb=8, item_minutes=9)
    assert chat.at_work("builtin", "cuda", 4, **loop)==chat.at_work("openai:m", "cuda", 4, **loop)==loop|dict(workers=4)
    assert chat.at_work("hf:m", "cpu", 4, **loop)==loop|dict(workers=1, gpus=0)
    monkeypatch.setattr(chat, "pick_device", lambda d: d)
    assert chat.at_work("hf:m", "cuda:1", 4, **loop)==loop|dict(workers=1, gpus=1, item_gb=0)

@pytest.mark.parametrize("stage", ("describe","revise","summarize"))
def test_a_stage_has_one_process_ask_a_model_on_the_device_of_the_run(disk, monkeypatch, tmp_path, stage):
    import importlib
    from test_endpoint import given, launch
    m, seen = importlib.import_module(f"pathgen.{stage}"), {}
    class Stop(Exception): pass
    def each(f, *a, **kw):
        seen.update(kw, **f.keywords)
        raise Stop
    monkeypatch.setattr(m, "each", each)
    disk.models["m"] = Lmm(lambda p, n: "{}")
    given(tmp_path)
    with pytest.raises(Stop): launch(stage, tmp_path, "hf:m", 4, device="cpu")
    assert seen["workers"]==1 and seen["gpus"]==0 and (seen.get("chat") or seen["options"])["device"]=="cpu" and disk.loaded==[]

@pytest.mark.parametrize("op,before,after,text,says", (
    ("edit","small","large","Large glands, and small nuclei in small nests.",None),
    ("edit","small","large","Small glands, and small nuclei in large nests.",None),
    ("delete","and small nuclei","","Small glands in small nests.",None),
    ("add","","no necrosis","Small glands, and small nuclei in small nests. No necrosis.",None),
    ("edit","small","large","Large glands, and large nuclei in small nests.","not the description after"),
    ("delete","nucle","","Small glands, and small i in small nests.","before does not occur"),
    ("add","","necrosis","Small glands, and small nuclei in small nests.","after does not occur"),
    ("delete","small","nests","Small glands.","else they are empty"),
))
def test_an_operation_must_lead_from_the_description_to_the_text(op, before, after, text, says):
    given, raw = dict(description="Small glands, and small nuclei in small nests."), dict(text=text, op=op, before=before, after=after)
    if says is None: assert check(chat.BREAK, raw, given).op==op
    else:
        with pytest.raises(Misfit, match=says): check(chat.BREAK, raw, given)

def test_the_roles_of_the_paper_are_asked_like_any_other():
    given = {"caption":"Glands.", "description":"Round glands.", "a":"x", "b":"y"}
    for role in (chat.ENHANCE, chat.BREAK, chat.DIALOGUE, chat.CHOICE, chat.JUDGE):
        many({"t":["none"]})
        with pytest.raises(AnswerError, match=f"role {role.name}: .* no JSON object"): ask(role, "many", given | dict(text="t"), retries=0)
        assert "{" not in render(role, **given).split("Answer as JSON: {")[0] and role.private
