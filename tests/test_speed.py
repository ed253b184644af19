"What the benchmark leaves behind."
from multiprocessing import get_context
from pathgen import speed

def ask_own_process(): assert speed._own_process().submit(abs, -1).result(60)==1

def test_a_process_that_asked_its_own_process_ends():
    p = get_context('spawn').Process(target=ask_own_process)
    p.start()
    p.join(120)
    try: assert p.exitcode==0
    finally: p.kill()
