-- grain:   one row per run
-- source:  stored_runs (the published Parquet files of table `runs`)
-- formula: started is in UTC, without a time zone
-- caveat:  config and versions are JSON texts; read fields with config->>'$.sweep.layers'
select
    run,
    study,
    protocol,
    origin,
    positions,
    strength_unit,
    started at time zone 'UTC' as started,
    config,
    versions,
    "commit"
from stored_runs
