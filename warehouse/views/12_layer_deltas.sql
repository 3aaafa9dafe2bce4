-- grain:   one row per run, model, concept, positions and layer
-- source:  strength_sums
-- formula: plus, baseline and minus are logit_diff_matching at +s, 0 and -s, with the s of chosen_strengths;
--          delta = mean plus - mean minus; cohens_d = delta / sqrt((sd(plus)^2 + sd(minus)^2) / 2), sample
--          standard deviations; glass_delta = delta / sd(baseline); delta_plus_arm is +s against 0,
--          delta_minus_arm 0 against -s.
--          By the letter of the matching answer, A or B, with delta_a and delta_b the delta of either:
--          position_bias = (mean baseline of A - mean baseline of B) / 2, the nats by which the unsteered
--          model prefers the first answer; position_effect = (delta_a - delta_b) / 2, the part of the effect
--          that pushes one letter; balanced_delta = (delta_a + delta_b) / 2, the part that follows the
--          behaviour; balanced_cohens_d and balanced_glass_delta = balanced_delta over the root of the mean of
--          the variances within letters (both arms; baseline)
-- caveat:  no pairing of prompts: equal to the mean over prompts of their effects where every prompt has
--          both signs (the check of prompt_effects finds others). cohens_d treats the arms as independent; d_z
--          of paired_effects does not. Effect sizes are null where the spread is zero (under 1e-7 of the
--          means: scores are float32) or undefined; balanced figures are null unless A and B both occur, and
--          leave out prompts of any other letter
-- build:   once
with merged as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        matching,
        strength,
        sum(num_prompts) as num_prompts,
        sum(total) as total,
        sum(total_squares) as total_squares
    from strength_sums
    group by run, model, concept, positions, layer, matching, strength
),

strengths as (
    -- chosen_strengths, worked out in place so that a filter on the cell reaches the scan
    select
        run,
        model,
        concept,
        positions,
        layer,
        matching,
        strength,
        num_prompts,
        total,
        total_squares,
        bool_or(strength = 1) over cell and bool_or(strength = -1) over cell as has_one,
        bool_or(strength > 0) over size and bool_or(strength < 0) over size as has_both
    from merged
    window
        cell as (partition by run, model, concept, positions),
        size as (partition by run, model, concept, positions, abs(strength))
),

chosen as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        matching,
        strength,
        num_prompts,
        total,
        total_squares,
        case
            when has_one then 1.0::double
            else max(abs(strength)) filter (where has_both) over (partition by run, model, concept, positions)
        end as s
    from strengths
),

letters as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        matching,
        sign(strength) as arm,
        s,
        num_prompts,
        total,
        total_squares,
        total / num_prompts as mean,
        greatest(total_squares - total ** 2 / num_prompts, 0) / nullif(num_prompts - 1, 0) as variance
    from chosen
    where strength = 0 or abs(strength) = s
),

layers as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        any_value(s) as strength,
        sum(num_prompts) filter (where arm = 1) as num_plus,
        sum(num_prompts) filter (where arm = -1) as num_minus,
        sum(num_prompts) filter (where arm = 0) as num_baseline,
        sum(total) filter (where arm = 1) / num_plus as mean_plus,
        sum(total) filter (where arm = -1) / num_minus as mean_minus,
        sum(total) filter (where arm = 0) / num_baseline as mean_baseline,
        greatest(sum(total_squares) filter (where arm = 1) - num_plus * mean_plus ** 2, 0)
        / nullif(num_plus - 1, 0) as var_plus,
        greatest(sum(total_squares) filter (where arm = -1) - num_minus * mean_minus ** 2, 0)
        / nullif(num_minus - 1, 0) as var_minus,
        greatest(sum(total_squares) filter (where arm = 0) - num_baseline * mean_baseline ** 2, 0)
        / nullif(num_baseline - 1, 0) as var_baseline,
        any_value(mean) filter (where arm = 1 and matching = 'A')
        - any_value(mean) filter (where arm = -1 and matching = 'A') as delta_a,
        any_value(mean) filter (where arm = 1 and matching = 'B')
        - any_value(mean) filter (where arm = -1 and matching = 'B') as delta_b,
        any_value(mean) filter (where arm = 0 and matching = 'A')
        - any_value(mean) filter (where arm = 0 and matching = 'B') as baseline_gap,
        count(variance) filter (where arm <> 0 and matching in ('A', 'B')) as num_arms,
        avg(variance) filter (where arm <> 0 and matching in ('A', 'B')) as var_arms_within,
        count(variance) filter (where arm = 0 and matching in ('A', 'B')) as num_bases,
        avg(variance) filter (where arm = 0 and matching in ('A', 'B')) as var_baseline_within
    from letters
    group by run, model, concept, positions, layer
),

spreads as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        strength,
        least(num_plus, num_minus)::bigint as num_prompts,
        mean_baseline,
        mean_plus,
        mean_minus,
        mean_plus - mean_minus as delta,
        delta_a,
        delta_b,
        baseline_gap,
        1e-7 * (abs(mean_plus) + abs(mean_minus)) as least_arms,
        1e-7 * abs(mean_baseline) as least_baseline,
        sqrt((var_plus + var_minus) / 2) as sd_arms,
        sqrt(var_baseline) as sd_baseline,
        case when num_arms = 4 then sqrt(var_arms_within) end as sd_arms_within,
        case when num_bases = 2 then sqrt(var_baseline_within) end as sd_baseline_within
    from layers
    where num_plus > 0 and num_minus > 0
)
select
    run,
    model,
    concept,
    positions,
    layer,
    num_prompts,
    strength,
    mean_baseline,
    mean_plus,
    mean_minus,
    delta,
    mean_plus - mean_baseline as delta_plus_arm,
    mean_baseline - mean_minus as delta_minus_arm,
    case when sd_arms > least_arms then delta / sd_arms end as cohens_d,
    case when sd_baseline > least_baseline then delta / sd_baseline end as glass_delta,
    baseline_gap / 2 as position_bias,
    (delta_a - delta_b) / 2 as position_effect,
    (delta_a + delta_b) / 2 as balanced_delta,
    case when sd_arms_within > least_arms then (delta_a + delta_b) / 2 / sd_arms_within end
        as balanced_cohens_d,
    case when sd_baseline_within > least_baseline then (delta_a + delta_b) / 2 / sd_baseline_within end
        as balanced_glass_delta
from spreads
