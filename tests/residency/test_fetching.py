"""Are experts there while they are used, gone when others need the room, and never more than the bytes said?"""

import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from held_memory import held_bytes

from moesaic.errors import MemoryLimitError, RecipeError, WeightsError
from moesaic.model.source import Traffic
from moesaic.residency.fetching import Budget, FetchedExperts, Whole
from moesaic.residency.transfer import Carrier
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import write_tensors


class Toy(Whole):
    """An expert of ten bytes that keeps a log of what happens to it, in one list with all others."""

    size = 10

    def __init__(self, name: int, log: list[str]):
        self.name, self.log, self.filled = name, log, False
        self.reading: Callable[[], None] = lambda: None

    def tensors(self):
        self.reading()
        return {"value": torch.full((2,), float(self.name))}

    def fill(self, tensors):
        self.log.append(f"+{self.name}")
        self.filled, self.value = True, tensors["value"]

    def empty(self):
        self.log.append(f"-{self.name}")
        self.filled = False

    def announce(self):
        self.log.append(f"?{self.name}")


def source(room: int, experts: int = 4, **more) -> tuple[FetchedExperts, list[Toy], list[str]]:
    log: list[str] = []
    toys = [Toy(name, log) for name in range(experts)]
    budget = Budget(room=room, kept=0, least=10, working=lambda rows, tokens: rows * tokens, **more)
    return FetchedExperts(toys, budget, settled=True), toys, log


def use(fetched: FetchedExperts, *experts: int) -> None:
    with fetched.using(experts):
        assert all(fetched.experts[expert].filled for expert in experts)
        assert sum(10 for toy in fetched.experts if toy.filled) <= fetched.budget.room


def settled(fetched: FetchedExperts) -> None:
    """Once whatever is fetched ahead is there."""
    with fetched.changed:
        assert fetched.changed.wait_for(lambda: not fetched.coming, timeout=5)


def test_who_was_asked_longest_ago_makes_room():
    fetched, _, log = source(20)
    for expert in (0, 1, 0, 2, 0, 1):
        use(fetched, expert)
    assert log == ["+0", "+1", "-1", "+2", "-2", "+1"]
    assert (fetched.traffic.fetches, fetched.traffic.bytes, fetched.traffic.hits) == (4, 40, 2)
    assert fetched.missing((0, 1, 2, 3)) == 20 and not fetched.missing((0, 1))


def test_what_is_in_use_stays_and_counts_once():
    fetched, _, log = source(20)
    with fetched.using((0,)):
        for expert in (1, 2, 0, 3, 0):
            use(fetched, expert)
    assert "-0" not in log and fetched.traffic.hits == 0 and fetched.traffic.fetches == 4
    with pytest.raises(MemoryLimitError, match="do not fit at once; expected at most 20 bytes; got 30 for 3 experts"):
        use(fetched, 0, 1, 2)
    assert not fetched.pins


def test_what_is_needed_next_is_fetched_while_others_compute_if_there_is_room():
    fetched, toys, log = source(20)
    reads = threading.Event()
    toys[1].reading = lambda: reads.wait(5) and None
    with fetched.using((0,)):
        fetched.expect((1,))
        assert fetched.coming == {1} and not fetched.missing((1,))
        reads.set()
    use(fetched, 1)
    assert log == ["+0", "+1"] and fetched.traffic.hits == 0, "fetched for whoever asks first: that is no hit"
    use(fetched, 1)
    assert fetched.traffic.hits == 1
    with fetched.using((0, 1)):
        fetched.expect((2, 3))
    assert log == ["+0", "+1", "?2", "?3"], "where there is no room the system is told, and nobody goes for nothing"


def test_what_goes_wrong_ahead_of_time_is_told_to_who_asks():
    fetched, toys, _ = source(20)

    def broken() -> None:
        raise WeightsError("damaged")

    toys[1].reading = broken
    fetched.expect((1,))
    settled(fetched)
    assert not fetched.here and fetched.traffic == Traffic()
    with pytest.raises(WeightsError, match="damaged"):
        use(fetched, 1)
    toys[1].reading = lambda: None
    use(fetched, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, WeightsError("damaged"), MemoryError])
def test_an_interrupted_fetch_leaves_nothing_behind(error):
    fetched, toys, log = source(10)
    use(fetched, 0)

    def interrupted() -> None:
        raise error

    toys[1].reading = interrupted
    with pytest.raises(type(error) if isinstance(error, Exception) else error), fetched.turn(1, 0):
        use(fetched, 1)
    assert not toys[1].filled and not fetched.coming and not fetched.pins and not fetched.owner
    toys[1].reading = lambda: None
    with fetched.turn(1, 0):
        use(fetched, 1)
    assert log == ["+0", "-0", "-1", "+1"]


def test_threads_wait_for_room_and_nobody_is_thrown_out():
    fetched, toys, _ = source(20, experts=6)
    failed: list[BaseException] = []
    for toy in toys:
        toy.reading = lambda: time.sleep(0.001)

    def ask(start: int) -> None:
        try:
            for step in range(40):
                use(fetched, (start + step) % 6, (start + 2 * step + 1) % 6)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failed and not any(thread.is_alive() for thread in threads)
    assert not fetched.pins and fetched.weight(fetched.here) <= 20


def test_an_answer_waits_for_the_one_before_it_and_its_own_thread_is_told():
    fetched, _, _ = source(40)
    order: list[str] = []

    def second() -> None:
        with fetched.turn(1, 5):
            order.append("second")

    thread = threading.Thread(target=second)
    with fetched.turn(1, 5):
        thread.start()
        thread.join(timeout=0.05)
        order.append("first")
        with pytest.raises(RecipeError, match="another answer of this mixture is not finished"), fetched.turn(1, 5):
            pass
    thread.join(timeout=5)
    assert order == ["first", "second"]


def test_a_long_answer_takes_the_room_of_experts_and_gives_it_back():
    fetched, _, log = source(40)
    use(fetched, 0)
    use(fetched, 1)
    use(fetched, 2)
    with fetched.turn(2, 10):
        assert log[-1] == "-0" and fetched.capacity == 20
    assert fetched.capacity == 40 and fetched.sorts is False
    with pytest.raises(MemoryLimitError, match="32 to answer a row of 32 tokens, and 10 for experts"):
        fetched.rows(32)
    with pytest.raises(MemoryLimitError, match="60 to answer 2 rows of 30 tokens"), fetched.turn(2, 30):
        pass


def test_as_many_rows_are_answered_at_once_as_the_memory_that_is_kept_allows():
    budget = Budget(room=100, kept=40, least=10, working=lambda rows, tokens: rows * tokens)
    fetched = FetchedExperts([Toy(n, []) for n in range(7)], budget, settled=True)
    assert [fetched.rows(tokens) for tokens in (5, 10, 11, 40, 80)] == [8, 4, 2, 1, 1]
    assert fetched.sorts
    assert not FetchedExperts([Toy(n, []) for n in range(6)], budget, settled=True).sorts, "all fit at once"
    assert not FetchedExperts(fetched.experts, budget, settled=False).sorts, "nobody knows who is asked next"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["as stored", "converted"])
def test_what_is_let_go_of_goes_back_to_the_system_at_once(tmp_path, dtype):
    write_tensors(tmp_path / TENSORS, {f"t{n}": torch.rand(1 << 20).to(dtype) for n in range(12)})
    with TensorFiles(tmp_path, mapped=True) as files:
        before = held_bytes()
        for _ in range(3):
            held = [files.fetch(name, torch.float32) for name in files]
            assert sum(float(tensor[::1024].sum()) for tensor in held) > 0
            assert 0.9 < (held_bytes() - before) / (12 << 22) < 1.15, "and is there once"
            del held
            files.let_go()
            assert held_bytes() - before < 3 << 20


# --- by way of the host to a device -----------------------------------------------------------------------------------


class Reads:
    """Tensors on disk: how often they were read, and let go of."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {"a": torch.rand(3, 5, generator=generator), "b": torch.arange(7)}
        self.read = self.gone = 0

    def __call__(self):
        self.read += 1
        return self.tensors

    def let_go(self) -> None:
        self.gone += 1


def carried(carrier: Carrier, expert: int, reads: Reads) -> None:
    there = carrier.carried(expert, reads, reads.let_go)
    assert there.keys() == reads.tensors.keys()
    for name, tensor in there.items():
        assert tensor.to("cpu").equal(reads.tensors[name]) and tensor.device.type == carrier.device.type
        assert tensor.data_ptr() != reads.tensors[name].data_ptr()


def carries(device: torch.device) -> None:
    size = Carrier(device, 0).taken(512)
    carrier, reads = Carrier(device, 2 * size), [Reads() for _ in range(3)]
    for expert in (0, 1, 0, 2, 0, 1):
        carried(carrier, expert, reads[expert])
    assert [one.read for one in reads] == [one.gone for one in reads] == [1, 2, 1], "the one brought longest ago went"
    assert list(carrier.near) == [0, 1]
    none, one = Carrier(device, size - 1), Reads()
    carried(none, 0, one)
    carried(none, 0, one)
    assert one.read == one.gone == 2 and not none.near


def test_what_the_host_has_kept_is_not_read_again():
    carries(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_what_the_host_has_kept_is_copied_to_the_device():
    carries(torch.device("cuda"))


def test_experts_on_a_device_come_by_way_of_the_host():
    fetched, toys, log = source(20, device=torch.device("cpu"), near=10**6)
    for expert in (0, 1, 2, 0):
        use(fetched, expert)
        assert toys[expert].value.tolist() == [expert, expert]
    assert log == ["+0", "+1", "-0", "+2", "-1", "+0"] and list(fetched.carrier.near) == [1, 2, 0]
