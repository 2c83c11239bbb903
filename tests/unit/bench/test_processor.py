from __future__ import annotations

import os
import threading
import time

import pytest

from bench import processor

TICK = 1 / os.sysconf("SC_CLK_TCK")


def test_busy_is_all_but_idle_waiting_and_stolen() -> None:
    stat = "cpu  9 9 9 100 20 9 9 3 9 9\ncpu0 9 9 9 9 9\ncpu1 9 9 9 9 9\nintr 9\n"
    unused, cores = processor.unused_seconds(stat)
    assert cores == 2
    assert unused == pytest.approx(123 * TICK)
    before, after = processor.Clock(10.0, 5.0, 2), processor.Clock(12.0, 6.0, 2)
    assert after.busy_since(before) == 3.0


def test_a_program_costs_what_it_worked() -> None:
    """On the real clock: this test's own busy loop."""
    before = processor.Clock.read()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert processor.Clock.read().busy_since(before) > 0.03


def test_a_process_may_have_any_name() -> None:
    stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 10 20 0 0 100 20 3 0 20 0 1 0 500"
    assert processor.process_seconds(stat) == pytest.approx(123 * TICK)


def test_memory_is_the_field_in_kib() -> None:
    status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
    assert processor.memory_kb(status) == 1024
    assert processor.memory_kb(status, "VmHWM") == 2048
    assert processor.memory_kb("Name:\tkthread\n") == 0


def test_the_time_a_process_has_run_counts_its_threads() -> None:
    """On the real clock: a thread of this test's own."""
    before = processor.run_seconds(os.getpid())
    told, done = threading.Event(), threading.Event()

    def work() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        told.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    told.wait()
    spent = processor.run_seconds(os.getpid()) - before
    done.set()
    thread.join()
    assert spent > 0.04
