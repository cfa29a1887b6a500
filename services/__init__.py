"""The teacher and the data it makes: serving, client, prompts, acceptance, dataset, lineage."""
