"What the benchmark leaves behind."
from multiprocessing import get_context
import pandas as pd, pytest
from pathgen import speed
from pathgen.core import PathgenError

def ask_own_process(): assert speed._own_process().submit(abs, -1).result(60)==1

def test_a_process_that_asked_its_own_process_ends():
    p = get_context('spawn').Process(target=ask_own_process)
    p.start()
    p.join(120)
    try: assert p.exitcode==0
    finally: p.kill()

def test_a_rate_that_a_busy_machine_turned_round_is_refused(monkeypatch):
    monkeypatch.setattr(speed, 'take_turns', lambda tasks, rounds: pd.DataFrame(dict(short=[2.], long=[1.])))
    with pytest.raises(PathgenError, match='4 steps of tiny took no longer than one: this machine is too busy'):
        speed.training_rate('tiny', 'cpu', batch=2, steps=4)
