-- I34: a run is of one tick, and a tick that started one has it
SELECT 'schedule_ticks' AS place, execution_id::text AS what,
       format('%s ticks', count(*)) AS facts
  FROM schedule_ticks
 WHERE execution_id IS NOT NULL
 GROUP BY execution_id
HAVING count(*) > 1
UNION ALL
SELECT 'schedule_ticks', schedule_id::text, tick_at::text
  FROM schedule_ticks
 WHERE state = 'started' AND execution_id IS NULL
