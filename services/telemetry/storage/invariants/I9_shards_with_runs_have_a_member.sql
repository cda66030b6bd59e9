-- I9: a shard with open runs has a living member
-- Settles: may be so for a moment while runs go on.
SELECT 'engine_shards' AS place, s.shard::text AS what, 'no living member' AS facts
  FROM engine_shards s
 WHERE EXISTS (SELECT 1 FROM workflow_executions w
                WHERE w.shard = s.shard AND w.status IN ('pending', 'running', 'paused'))
   AND NOT EXISTS (SELECT 1 FROM engine_members m
                    WHERE m.id = s.member_id AND m.state = 'live')
