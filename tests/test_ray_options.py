"""What Ray Serve is told of a base model: where its replicas go, and how many there are."""

import tempfile
from pathlib import Path

import pytest
from ray.serve._private import constants

from cluster.addresses import host_problem
from cluster.errors import ConfigError
from cluster.settings import parse_settings
from deployments.process.ray_options import beside_others, on_nodes, replicas_of, resources_of


def model(**fields):
    return parse_settings({"models": [{"id": "m", "path": "p"} | fields]}).models[0]


def test_a_replica_without_gpus_is_kept_to_its_nodes():
    labels = {"roundhouse/group": "cpu"}
    actor = resources_of(model(node_labels=labels))["ray_actor_options"]
    assert actor["label_selector"] == labels
    assert on_nodes({}) == {}


def test_with_gpus_all_workers_are_on_one_node_with_the_labels():
    labels = {"roundhouse/group": "h100"}
    told = resources_of(
        model(tensor_parallel_size=4, gpus_per_worker=1, cpus_per_replica=8, node_labels=labels)
    )
    assert told["placement_group_bundles"] == [{"GPU": 1, "CPU": 8}] + [{"GPU": 1}] * 3
    assert told["placement_group_strategy"] == "STRICT_PACK"
    assert told["placement_group_bundle_label_selector"] == [labels]
    assert "label_selector" not in told["ray_actor_options"], "the group decides"


@pytest.fixture
def short_path():
    """Of a folder; pytest's own are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="rh-") as folder:
        yield Path(folder)


def test_clusters_of_a_machine_share_neither_ports_nor_files(short_path):
    """Two with one port of Serve's fallback proxy would answer each other's requests."""
    one, other = (beside_others(short_path / name) for name in ("a", "b"))
    ports = {name: int(one.pop(name)) for name in sorted(one) if name.endswith("_PORT")}
    assert len(set(ports.values())) == 3
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in short_path.glob("*/h"))
    assert not set(one.values()) & set(other.values())
    # Ray Serve reads them by these names.
    source = Path(constants.__file__).read_text()
    assert all(f'"{name}"' in source for name in (*one, *ports))


def test_a_folder_whose_sockets_would_have_too_long_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="TMPDIR"):
        beside_others(tmp_path / ("long" * 20))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "nodes", "is_fine"),
    [
        ("127.0.0.1", 1, True),
        ("0.0.0.0", 3, True),
        ("127.0.0.1", 2, False),
    ],
)
def test_nodes_must_reach_each_others_ingresses(host, nodes, is_fine):
    problem = host_problem(host, nodes)
    assert (problem is None) == is_fine
    assert is_fine or problem.startswith("http.host:")


def test_replicas_are_a_number_or_follow_the_load():
    assert replicas_of(model(replicas=3)) == {"num_replicas": 3}
    scaling = replicas_of(model(replicas=2, max_replicas=6, max_ongoing=64, scale_at=0.5))
    config = scaling["autoscaling_config"]
    assert (config["min_replicas"], config["max_replicas"]) == (2, 6)
    assert config["target_ongoing_requests"] == 32


def test_fewer_at_most_than_at_least_is_refused():
    with pytest.raises(ConfigError, match="max_replicas"):
        model(replicas=3, max_replicas=2)
