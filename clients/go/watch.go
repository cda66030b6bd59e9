package qflow

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	orchestratorv1 "qflow.dev/go/qflow/orchestrator/v1"
)

const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 5 * time.Second
	// Longer than a restart of a service takes; after that the cut is the caller's to see.
	awayMax = 60 * time.Second
)

// Final says whether a run with this status is over.
func Final(status orchestratorv1.ExecutionStatus) bool {
	switch status {
	case orchestratorv1.ExecutionStatus_EXECUTION_STATUS_COMPLETED,
		orchestratorv1.ExecutionStatus_EXECUTION_STATUS_FAILED,
		orchestratorv1.ExecutionStatus_EXECUTION_STATUS_CANCELLED:
		return true
	default:
		return false
	}
}

// Watch gives the steps of a run after a revision (0: all that stands) until the run is over. A
// watch that is cut goes on after the last revision that it gave. An error ends it.
func (client *Client) Watch(
	ctx context.Context, executionID string, afterRevision int64,
) iter.Seq2[*orchestratorv1.WatchExecutionResponse, error] {
	return func(yield func(*orchestratorv1.WatchExecutionResponse, error) bool) {
		// Leaving the loop early ends the call.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stub := orchestratorv1.NewExecutionServiceClient(client.Orchestrator)
		pause, away := pauseMin, time.Duration(0)
		for {
			steps, err := stub.WatchExecution(ctx, &orchestratorv1.WatchExecutionRequest{
				ExecutionId: executionID, AfterRevision: afterRevision,
			})
			var step *orchestratorv1.WatchExecutionResponse
			for err == nil {
				if step, err = steps.Recv(); err != nil {
					break
				}
				pause, away = pauseMin, 0
				afterRevision = step.GetRevision()
				if !yield(step, nil) || Final(executionOf(step).GetStatus()) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				// It may have been over at the revision that the watch goes on after.
				var now *orchestratorv1.GetExecutionResponse
				now, err = stub.GetExecution(ctx, &orchestratorv1.GetExecutionRequest{
					ExecutionId: executionID, View: orchestratorv1.ExecutionView_EXECUTION_VIEW_BASIC,
				})
				if err == nil && Final(now.GetExecution().GetStatus()) {
					return
				}
			}
			cut := err == nil || status.Code(err) == codes.Unavailable
			if err == nil && away >= awayMax {
				err = status.Error(codes.Unavailable, "the watch ends again and again")
			}
			if !cut || away >= awayMax {
				yield(nil, err)
				return
			}
			select {
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			case <-time.After(pause):
			}
			away += pause
			pause = min(2*pause, pauseMax)
		}
	}
}

func executionOf(step *orchestratorv1.WatchExecutionResponse) *orchestratorv1.Execution {
	if whole := step.GetSnapshot().GetExecution(); whole != nil {
		return whole
	}
	return step.GetDelta().GetExecution()
}
