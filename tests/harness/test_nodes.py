"""The lines between the nodes of a job: what was said last is heard, however soon the speaker leaves after it."""

import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from harness import nodes
from harness.links import Door, Link, call
from harness.nodes import Distant, Lead, NodeLost, Shape, be_agent
from harness.trainer import Trainer


@pytest.fixture
def line(tmp_path: Path) -> tuple[Link, Link]:
    """Return the two ends of a line: the one that called and the one that answered."""
    door, answered = Door(tmp_path / "door"), []
    answers = threading.Thread(target=lambda: answered.append(door.answer(time.monotonic() + 60)))
    answers.start()
    caller = call(tmp_path / "door")
    answers.join()
    door.close()
    assert caller
    return caller, answered[0]


def no_trainer(device: str) -> Trainer:
    """Refuse to start one: these tests have none."""
    raise AssertionError(device)


def gone(link: Link) -> None:
    """Wait until a line is known to be dead."""
    assert link._dead.wait(60)


def test_what_has_come_is_read_though_one_hung_up_oneself(line: tuple[Link, Link]) -> None:
    agent, leader = line
    leader.send({"leave": True})
    agent.close()  # as after a message that could not be sent
    gone(agent)
    assert not agent.dead
    assert agent.next() == {"leave": True}
    assert agent.dead
    assert agent.next() is None


@pytest.mark.parametrize(("said", "lost"), [({"leave": True}, False), (None, True)])
def test_an_agent_hears_that_it_may_leave_though_its_leader_is_gone_by_then(
    line: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: dict | None, lost: bool
) -> None:
    agent, leader = line
    if said:
        leader.send(said)
    leader.close()
    gone(agent)
    monkeypatch.setattr(nodes, "call", lambda place: agent)
    with pytest.raises(NodeLost) if lost else nullcontext():
        be_agent(Shape(2, 2, 1), tmp_path, no_trainer, threading.Event())


def test_the_last_words_of_a_trainer_count_before_the_death_of_its_node(
    line: tuple[Link, Link], tmp_path: Path
) -> None:
    agent, leader = line
    lead = Lead(Shape(), tmp_path / "place", no_trainer, threading.Event())
    trainer = Distant(leader, "far", "cpu")
    lead.links, lead.members = {1: (leader, "far")}, {trainer.life: trainer}
    agent.send({"life": trainer.life, "message": {"at": "end", "outcome": "made"}})
    agent.close()
    gone(leader)
    heard = []
    while not heard or heard[-1]["at"] != "died":
        lead._sort()
        heard += [message] if (message := trainer.hear(0)) else []
    assert [message["at"] for message in heard] == ["end", "died"]
    assert not trainer.alive
