"""Who takes part, what is whose, and what is refused, without starting others."""

import pytest

from jkv import hosts, sweep, train_predictor
from jkv.auto_mesh import mesh_words, settle_mesh
from jkv.config import ModelConfig
from jkv.errors import UserError
from jkv.hosts import Hosts, need_out, rows_of

SMALL = ModelConfig("llama", 96, 40, 72, 2, 8, 2, 12, 1e4)


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
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES: 'two' is no number"):
        hosts.join()
    with pytest.raises(UserError, match="train_predictor runs on one host, here are several; start"):
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
    assert rows_of(32, Hosts(1, 4)) == 8
    with pytest.raises(UserError, match="3 hosts can't share 32 rows evenly; give a multiple of 3"):
        rows_of(32, Hosts(1, 3))
    with pytest.raises(UserError, match="--out: is missing; give a directory that all hosts share"):
        need_out(None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data=1,model=2", "model=2 would cross hosts, which have 1 devices each: only rows are shared by hosts"),
        ("data=3", "data=3 can't be shared by 2 hosts evenly; give a data axis that is a multiple of 2"),
        ("data=4", "data=4 asks for 2 devices of each of 2 hosts, which have 1"),
    ],
)
def test_meshes_that_hosts_cannot_share(words, message):
    with pytest.raises(UserError) as error:
        settle_mesh(words, SMALL, rows=12, slots=32, dtype="float32", hosts=2)
    assert message in str(error.value)


@pytest.mark.parametrize("words", ["data=2", "auto"])
def test_a_hosts_part_of_a_mesh(words):
    mesh = settle_mesh(words, SMALL, rows=12, slots=32, dtype="float32", hosts=2)
    assert (mesh_words(mesh), mesh_words(mesh, 2)) == ("data=1,model=1", "data=2,model=1")
