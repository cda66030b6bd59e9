// The whole trip: sign in, create two nodes from source and a workflow of them, start it, watch it
// over a cut, read what it gives, bring a file and fetch it, be refused.
//
//	QFLOW_REGISTRY=127.0.0.1:7101 QFLOW_ORCHESTRATOR=127.0.0.1:7102 QFLOW_RUNNER=127.0.0.1:7103 \
//	QFLOW_EMAIL=owner@localhost QFLOW_PASSWORD=… go run ./example
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/google/uuid"

	qflow "qflow.dev/go"
	orchestratorv1 "qflow.dev/go/qflow/orchestrator/v1"
	registryv1 "qflow.dev/go/qflow/registry/v1"
	runnerv1 "qflow.dev/go/qflow/runner/v1"
)

const (
	next = "def next_number(n: int) -> int:\n    return n + 1\n"
	tell = "import time\n\n\ndef tell(name: str, n: int) -> str:\n" +
		"    time.sleep(2)  # time to watch\n    return f\"{name}: {n}\"\n"
	name   = "Zoë · 東京 🚲"
	number = int64(1)<<53 + 1 // no double holds it
)

func main() {
	log.SetFlags(0)
	client, err := qflow.New(qflow.OptionsFromEnvironment())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := trip(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

func trip(ctx context.Context, client *qflow.Client) error {
	session, err := registryv1.NewSessionServiceClient(client.Registry).SignIn(
		ctx,
		&registryv1.SignInRequest{
			Email: os.Getenv("QFLOW_EMAIL"), Password: os.Getenv("QFLOW_PASSWORD"),
		},
	)
	if err != nil {
		return err
	}
	client.SetToken(session.GetToken())
	fmt.Println("signed in:", session.GetCaller().GetEmail())
	workflow, err := createWorkflow(ctx, client)
	if err != nil {
		return err
	}
	execution, err := start(ctx, client, workflow)
	if err != nil {
		return err
	}
	if err := watch(ctx, client, execution); err != nil {
		return err
	}
	if err := files(ctx, client); err != nil {
		return err
	}
	return refused(ctx, client)
}

func createWorkflow(ctx context.Context, client *qflow.Client) (string, error) {
	nodes := registryv1.NewNodeServiceClient(client.Registry)
	ids := map[string]string{}
	for place, code := range map[string]string{"next": next, "tell": tell} {
		made, err := nodes.CreateNode(ctx, &registryv1.CreateNodeRequest{
			Name: "trip: " + place, Code: code, RequestId: uuid.NewString(),
		})
		if err != nil {
			return "", err
		}
		ids[place] = made.GetNode().GetId()
	}
	made, err := registryv1.NewWorkflowServiceClient(client.Registry).CreateWorkflow(
		ctx,
		&registryv1.CreateWorkflowRequest{
			Name: "trip", Activate: true, RequestId: uuid.NewString(),
			Definition: &registryv1.WorkflowDefinition{
				Nodes: []*registryv1.WorkflowNode{
					{Id: "next", NodeId: ids["next"]}, {Id: "tell", NodeId: ids["tell"]},
				},
				Inputs: []*registryv1.WorkflowInput{{Name: "name"}, {Name: "n"}},
				Connections: []*registryv1.Connection{
					{SourceOutput: "n", TargetNode: "next", TargetInput: "n"},
					{SourceOutput: "name", TargetNode: "tell", TargetInput: "name"},
					{
						SourceNode: "next", SourceOutput: "result",
						TargetNode: "tell", TargetInput: "n",
					},
				},
				Outputs: []*registryv1.WorkflowOutput{
					{Name: "number", SourceNode: "next", SourceOutput: "result"},
					{Name: "text", SourceNode: "tell", SourceOutput: "result"},
				},
			},
		},
	)
	return made.GetWorkflow().GetId(), err
}

// start asks twice, as one does whose first answer was lost: there is one run.
func start(ctx context.Context, client *qflow.Client, workflow string) (string, error) {
	inputs, err := json.Marshal(map[string]any{"name": name, "n": number})
	if err != nil {
		return "", err
	}
	request := &orchestratorv1.StartExecutionRequest{
		WorkflowId: workflow, InputJson: string(inputs), RequestId: uuid.NewString(),
	}
	stub := orchestratorv1.NewExecutionServiceClient(client.Orchestrator)
	first, err := stub.StartExecution(ctx, request)
	if err != nil {
		return "", err
	}
	again, err := stub.StartExecution(ctx, request)
	if err != nil {
		return "", err
	}
	if again.GetExecution().GetId() != first.GetExecution().GetId() || !again.GetExisting() {
		return "", errors.New("two runs of one request")
	}
	fmt.Println("started once:", first.GetExecution().GetId())
	return first.GetExecution().GetId(), nil
}

// watch leaves after the first state and goes on from its revision, as after a restart of its own.
func watch(ctx context.Context, client *qflow.Client, execution string) error {
	var seen int64
	for step, err := range client.Watch(ctx, execution, 0) {
		if err != nil {
			return err
		}
		if seen = step.GetRevision(); seen > 0 {
			break
		}
	}
	fmt.Println("watching again after revision", seen)
	for _, err := range client.Watch(ctx, execution, seen) {
		if err != nil {
			return err
		}
	}
	stub := orchestratorv1.NewExecutionServiceClient(client.Orchestrator)
	ended, err := stub.GetExecution(ctx, &orchestratorv1.GetExecutionRequest{ExecutionId: execution})
	if err != nil {
		return err
	}
	var output struct {
		Number int64  `json:"number"`
		Text   string `json:"text"`
	}
	if err := json.Unmarshal([]byte(ended.GetExecution().GetOutputJson()), &output); err != nil {
		return fmt.Errorf("%v: %w", ended, err)
	}
	fmt.Println("number:", output.Number)
	fmt.Println("text:", output.Text)
	if output.Number != number+1 || output.Text != fmt.Sprintf("%s: %d", name, number+1) {
		return errors.New("values have changed on the way")
	}
	return nil
}

func files(ctx context.Context, client *qflow.Client) error {
	content := []byte(strings.Repeat("Grüße\n", 30_000))
	digest := sha256.Sum256(content)
	uploads := runnerv1.NewUploadServiceClient(client.Runner)
	made, err := uploads.CreateUpload(ctx, &runnerv1.CreateUploadRequest{
		Filename: "grüße.txt", SizeBytes: int64(len(content)), RequestId: uuid.NewString(),
	})
	if err != nil {
		return err
	}
	writing, err := uploads.WriteUpload(ctx)
	if err != nil {
		return err
	}
	id := made.GetUpload().GetId()
	const chunkBytes = 64 << 10
	for at := 0; at < len(content); at += chunkBytes {
		request := &runnerv1.WriteUploadRequest{Chunk: content[at:min(at+chunkBytes, len(content))]}
		if at == 0 {
			request.UploadId = id
		}
		if err := writing.Send(request); err != nil {
			break // the answer below says why
		}
	}
	if _, err := writing.CloseAndRecv(); err != nil {
		return err
	}
	finished, err := uploads.FinishUpload(ctx, &runnerv1.FinishUploadRequest{
		UploadId: id, Sha256: hex.EncodeToString(digest[:]), RequestId: uuid.NewString(),
	})
	if err != nil {
		return err
	}
	reading, err := runnerv1.NewFileServiceClient(client.Runner).DownloadFile(
		ctx, &runnerv1.DownloadFileRequest{FileId: finished.GetFile().GetId()},
	)
	if err != nil {
		return err
	}
	var back bytes.Buffer
	for {
		part, err := reading.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		back.Write(part.GetChunk())
	}
	if !bytes.Equal(content, back.Bytes()) {
		return errors.New("the file is another")
	}
	fmt.Println("file:", finished.GetFile().GetFilename(), back.Len(), "bytes")
	return nil
}

func refused(ctx context.Context, client *qflow.Client) error {
	_, err := orchestratorv1.NewExecutionServiceClient(client.Orchestrator).StartExecution(
		ctx, &orchestratorv1.StartExecutionRequest{WorkflowId: "no id", Priority: 101},
	)
	refusal, ok := qflow.Refused(err)
	if !ok {
		return errors.New("it was not refused")
	}
	fmt.Println("refused:", refusal.Code, refusal.Reason)
	for _, each := range refusal.Fields {
		fmt.Printf("  %s: %s\n", each.Field, each.Description)
	}
	return nil
}
