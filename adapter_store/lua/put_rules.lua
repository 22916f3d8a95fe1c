-- Replace the rules of the choice if nobody replaced them meanwhile; older ones are kept for a while.
-- KEYS: rules, once
-- ARGV: revision that is expected ('' takes any), rules as JSON ('' for those of the settings)
-- Returns the new revision, or an error STALE.
return once(KEYS[2], function() return replace_newest(KEYS[1], ARGV[1], ARGV[2]) end)
