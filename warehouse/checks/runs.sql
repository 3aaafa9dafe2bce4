-- runs: one row per run;
-- every run that has scores has its row here.
select
    run,
    'grain' as violation,
    count(*) as num_rows
from runs
group by run
having count(*) > 1
union all
select
    scores.run,
    'missing' as violation,
    count(*) as num_rows
from scores
anti join runs
    on scores.run = runs.run
group by scores.run
