-- rejects: one row per run, model, concept, file and line; every one has its reason;
-- every run that has rejects has its row in runs.
select
    run,
    model,
    concept,
    file,
    line,
    'grain' as violation,
    count(*) as num_rows
from rejects
group by run, model, concept, file, line
having count(*) > 1
union all
select
    run,
    model,
    concept,
    file,
    line,
    'value' as violation,
    1 as num_rows
from rejects
where file is null or line is null or coalesce(reason, '') = ''
union all
select
    rejects.run,
    null::varchar as model,
    null::varchar as concept,
    null::varchar as file,
    null::bigint as line,
    'missing' as violation,
    count(*) as num_rows
from rejects
anti join runs
    on rejects.run = runs.run
group by rejects.run
