"""Roles, providers, retries and privacy of `pathgen.chat`."""
import pytest
from pydantic import BaseModel
from pathgen import chat
from pathgen.chat import AnswerError, Provider, Role, allow, ask, builtin, check, provenance, register, render
from pathgen.core import PathgenError

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

def test_private_inputs_stay():
    asked = model(['{"n": 1}'])
    with pytest.raises(PathgenError, match="reports.deidentified: true"): ask(SECRET, "model", dict(text="x"))
    assert asked == []
    assert ask(SECRET, "model", dict(text="x"), deidentified=True).value.n == 1
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
