-- I32: no more have places than a limit has, unless it was changed
SELECT 'execution_limits' AS place, l.id::text AS what,
       format('%s of %s under %L', count(*), l.max_running, s.key) AS facts
  FROM limit_slots s
  JOIN execution_limits l ON l.id = s.limit_id
 WHERE l.revision = 1
 GROUP BY l.id, l.max_running, s.key
HAVING count(*) > l.max_running
