-- scores: one row per run, model, concept, prompt, layer, strength and positions;
-- no column of it is null; the logits and the log-sum-exp are finite, and P(A) + P(B) is
-- not over 1 (1.01: log-probabilities that were rounded to bf16 give up to 1.002).
select
    run,
    model,
    concept,
    prompt,
    layer,
    strength,
    positions,
    'grain' as violation,
    count(*) as num_rows
from scores
group by run, model, concept, prompt, layer, strength, positions
having count(*) > 1
union all
select
    run,
    model,
    concept,
    prompt,
    layer,
    strength,
    positions,
    'value' as violation,
    1 as num_rows
from scores
where
    run is null
    or model is null
    or concept is null
    or prompt is null
    or layer is null
    or strength is null
    or positions is null
    or (matching in ('A', 'B')) is not true
    or (isfinite(strength) and isfinite(logit_matching) and isfinite(logit_other)) is not true
    or isfinite(logsumexp) is false
    or choice_mass > 1.01
