"""Who takes part, what is whose, and what is refused, without starting others."""

import dataclasses
from typing import Any

import pytest
from jax.sharding import Mesh

from jkv import sweep, train_predictor
from jkv.distributed import hosts
from jkv.distributed.choose_mesh import mesh_text, settle_mesh, spread_over, weight_count
from jkv.distributed.hosts import Hosts, need_out, rows_per_replica
from jkv.distributed.mesh import parse_mesh
from jkv.errors import UserError
from jkv.models.config import ModelConfig

WIDE = ModelConfig("llama", 96, 40, 96, 2, 48, 48, 12, 1e4)


def test_a_process_alone_joins_nobody():
    assert hosts.join() == hosts.here() == Hosts(0, 1)
    assert Hosts(0, 1).share([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_are_all_of_the_work_once(count):
    shares = [Hosts(i, count).share(range(13)) for i in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_wrong_words_in_the_environment(monkeypatch):
    monkeypatch.setenv(hosts.ADDRESS, "localhost:1")
    monkeypatch.setenv(hosts.COUNT, "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES: 'two' is not a number"):
        hosts.join()
    with pytest.raises(UserError, match="train_predictor runs on one host, but here are several; start"):
        train_predictor.main(["--model", "demo-llama"])
    monkeypatch.setenv(hosts.COUNT, "2")
    monkeypatch.setenv(hosts.INDEX, "5")
    with pytest.raises(UserError, match="the hosts did not find each other"):
        sweep.main(["--out", "nowhere"])


@pytest.mark.parametrize(
    ("environment", "workers"),
    [
        ({}, 1),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, 1),
        ({"here": "t1v-0,t1v-1,t1v-2,t1v-3"}, 4),
        ({"here": "t1v-0,t1v-1", "slices": "MEGASCALE_NUM_SLICES: '2'"}, 4),
    ],
)
def test_cloud_tpu_says_how_many_workers_it_has(monkeypatch, environment, workers):
    asked = {"worker-network-endpoints": environment.pop("here", ""), "tpu-env": environment.pop("slices", "")}
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts, "_metadata", asked.__getitem__)
    assert hosts._tpu_workers() == 1, "no TPU here, nobody is asked"
    monkeypatch.setattr(hosts, "_chips", lambda: True)
    assert hosts._tpu_workers() == workers


def test_rows_and_place():
    assert rows_per_replica(32, Hosts(1, 4)) == 8
    with pytest.raises(UserError, match="3 hosts can't share 32 rows evenly; give a multiple of 3"):
        rows_per_replica(32, Hosts(1, 3))
    with pytest.raises(UserError, match="--out: is missing; give a directory that all hosts share"):
        need_out(None)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh of them asks for."""

    id: int
    process_index: int
    here: int
    platform: str = "cpu"

    def memory_stats(self) -> None:
        assert self.process_index == self.here, "only a device of one's own can be asked"


def devices(hosts: int, each: int, here: int) -> list[Device]:
    return [Device(i, i // each, here) for i in range(hosts * each)]


def settle(words: str, index: int, count: int, each: int, rows: int = 12, **more: Any) -> tuple[Hosts, Mesh]:
    """The hosts as the mesh has them, and this host's mesh."""
    given = {"rows": rows, "slots": 32, "dtype": "float32", "devices": devices(count, each, index), **more}
    mesh = settle_mesh(words, WIDE, hosts=Hosts(index, count), **given)
    assert mesh is not None
    return spread_over(Hosts(index, count), mesh), mesh


@pytest.mark.parametrize(
    ("words", "hosts", "message"),
    [
        ("data=1,model=8", 3, "model=8 can't be held by whole hosts of 4 devices each, of which there are 3"),
        ("model=6", 2, "model=6 can't be held by whole hosts of 4 devices each, of which there are 2; give a multiple"),
        ("data=3", 2, "data=3 can't be shared by 2 hosts evenly; give a data axis that is a multiple of 2"),
        ("data=3,model=8", 4, "data=3 can't be shared by 2 groups of 2 hosts evenly; give a data axis that is a"),
        ("data=12", 2, "data=12 asks for 6 devices of each of 2 hosts, which have 4; let data x model be at most 8"),
        ("data=4,model=8", 4, "data=4,model=8 asks for 16 devices of each of 2 groups of 2 hosts, which have 8"),
        ("data=1,model=4", 5, "data=1 can't be shared by 5 hosts evenly"),
    ],
)
def test_meshes_that_hosts_cannot_share(words, hosts, message):
    with pytest.raises(UserError) as error:
        settle(words, 0, hosts, 4)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "index", "count", "part", "replica", "leader", "where"),
    [
        ("data=2", 1, 2, "data=1,model=1", 1, 1, [4]),
        ("data=4,model=4", 3, 4, "data=1,model=4", 3, 3, [12, 13, 14, 15]),
        ("data=6,model=2", 2, 3, "data=2,model=2", 2, 2, [8, 9, 10, 11]),
        # More on `model` than a host has: whole hosts, neighbours.
        ("model=8", 1, 2, "data=1,model=8", 0, 0, [*range(8)]),
        ("data=2,model=8", 0, 4, "data=1,model=8", 0, 0, [*range(8)]),
        ("data=2,model=8", 3, 4, "data=1,model=8", 1, 2, [*range(8, 16)]),
        ("data=1,model=24", 5, 6, "data=1,model=24", 0, 0, [*range(24)]),
    ],
)
def test_a_hosts_part_of_a_mesh(words, index, count, part, replica, leader, where):
    hosts, mesh = settle(words, index, count, 4)
    assert mesh_text(mesh) == part
    assert mesh_text(mesh, hosts) == ",".join(f"{k}={v}" for k, v in parse_mesh(words).items())
    assert (hosts.replica, hosts.leader) == (replica, leader)
    assert [device.id for device in mesh.devices.flat] == where


def test_replicas_share_the_work_and_the_rows():
    alike = [Hosts(i, 6, together=3).share(range(13)) for i in range(6)]
    assert alike[0] == alike[1] == alike[2]
    assert sorted(alike[0] + alike[3]) == list(range(13))
    assert rows_per_replica(32, Hosts(4, 8, together=4)) == 16
    with pytest.raises(UserError, match="2 groups of 4 hosts can't share 31 rows evenly; give a multiple of 2"):
        rows_per_replica(31, Hosts(4, 8, together=4))


def test_auto_crosses_hosts_only_where_it_must():
    """Within a host while weights and buffer fit there, over as few hosts as hold them otherwise."""
    weights = 4 * weight_count(WIDE)
    room = lambda share: {"usable": int(weights * share / 0.9), "rows": 8, "slots": 1}
    assert mesh_text(settle("auto", 1, 2, 4)[1]) in ("data=2,model=1", "data=3,model=1")
    for share, together in ((0.6, 1), (0.22, 2), (0.11, 4), (0.01, 4)):
        hosts, mesh = settle("auto", 1, 4, 4, **room(share))
        assert hosts.together == together, share
        assert mesh.shape["model"] == (4 * together if together > 1 else mesh.shape["model"])
