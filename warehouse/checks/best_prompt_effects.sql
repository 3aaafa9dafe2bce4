-- best_prompt_effects: one row per run, model, concept, positions and prompt;
-- the very rows of prompt_effects at the best layer.
select
    run,
    model,
    concept,
    positions,
    prompt,
    'grain' as violation,
    count(*) as num_rows
from best_prompt_effects
group by run, model, concept, positions, prompt
having count(*) > 1
union all
select
    prompt_effects.run,
    prompt_effects.model,
    prompt_effects.concept,
    prompt_effects.positions,
    prompt_effects.prompt,
    'not as in prompt_effects' as violation,
    1 as num_rows
from prompt_effects
inner join chosen_layers
    on prompt_effects.run = chosen_layers.run
    and prompt_effects.model = chosen_layers.model
    and prompt_effects.concept = chosen_layers.concept
    and prompt_effects.positions = chosen_layers.positions
    and prompt_effects.layer = chosen_layers.layer
anti join best_prompt_effects
    on prompt_effects.run = best_prompt_effects.run
    and prompt_effects.model = best_prompt_effects.model
    and prompt_effects.concept = best_prompt_effects.concept
    and prompt_effects.positions = best_prompt_effects.positions
    and prompt_effects.layer = best_prompt_effects.layer
    and prompt_effects.prompt = best_prompt_effects.prompt
    and prompt_effects.effect is not distinct from best_prompt_effects.effect
