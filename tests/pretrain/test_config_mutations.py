"""The campaign tests/campaigns/config_mutations.py: 300 in this process, a few by the command."""

from campaigns import config_mutations as campaign

from etude.pretrain.config_file import load_config


def test_no_shipped_configuration_is_refused() -> None:
    for config in campaign.CONFIGS:
        load_config(config)


def test_every_mutation_of_the_shipped_configurations_is_refused_by_name() -> None:
    chosen = campaign.draw(300, seed=7)
    assert {mutation.kind for mutation in chosen} == {"misspelt", "retyped", "out of range"}
    assert [m for m in chosen if campaign.in_process(m)] == []


def test_the_command_refuses_before_torch_could_be_imported() -> None:
    assert [m for m in campaign.draw(4, seed=8) if campaign.through_command(m)] == []
