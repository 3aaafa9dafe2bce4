-- grain:   one row per run, model, concept, file and line that an import did not take
-- source:  stored_rejects
-- formula: none
-- caveat:  a line is named once, for its first fault; field is empty where the whole line is at fault. Lines
--          that hold, but whose prompt, layer or strength lacks others, are here too ("... is left out")
select
    run,
    model,
    concept,
    file,
    line,
    field,
    value,
    reason
from stored_rejects
