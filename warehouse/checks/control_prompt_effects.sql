-- control_prompt_effects: one row per run, model, concept, positions, layer, control and prompt;
-- every control scored at +s or -s was scored at both.
select
    run,
    model,
    concept,
    positions,
    layer,
    control,
    prompt,
    'grain' as violation,
    count(*) as num_rows
from control_prompt_effects
group by run, model, concept, positions, layer, control, prompt
having count(*) > 1
union all
select
    control_scores.run,
    control_scores.model,
    control_scores.concept,
    control_scores.positions,
    control_scores.layer,
    control_scores.control,
    control_scores.prompt,
    'no effect' as violation,
    count(*) as num_rows
from control_scores
anti join control_prompt_effects
    on control_scores.run = control_prompt_effects.run
    and control_scores.model = control_prompt_effects.model
    and control_scores.concept = control_prompt_effects.concept
    and control_scores.positions = control_prompt_effects.positions
    and control_scores.layer = control_prompt_effects.layer
    and control_scores.control = control_prompt_effects.control
    and control_scores.prompt = control_prompt_effects.prompt
group by
    control_scores.run,
    control_scores.model,
    control_scores.concept,
    control_scores.positions,
    control_scores.layer,
    control_scores.control,
    control_scores.prompt
