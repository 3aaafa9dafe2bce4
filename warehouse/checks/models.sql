-- models: one row per run and model;
-- every model that has scores has its row here.
select
    run,
    model,
    'grain' as violation,
    count(*) as num_rows
from models
group by run, model
having count(*) > 1
union all
select
    scores.run,
    scores.model,
    'missing' as violation,
    count(*) as num_rows
from scores
anti join models
    on scores.run = models.run
    and scores.model = models.model
group by scores.run, scores.model
