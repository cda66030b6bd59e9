import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import dev.qflow.client.Client;
import dev.qflow.client.Options;
import dev.qflow.client.Refusal;
import dev.qflow.client.Watch;
import dev.qflow.orchestrator.v1.ExecutionServiceGrpc;
import dev.qflow.orchestrator.v1.GetExecutionRequest;
import dev.qflow.orchestrator.v1.StartExecutionRequest;
import dev.qflow.orchestrator.v1.StartExecutionResponse;
import dev.qflow.registry.v1.Connection;
import dev.qflow.registry.v1.CreateNodeRequest;
import dev.qflow.registry.v1.CreateWorkflowRequest;
import dev.qflow.registry.v1.NodeServiceGrpc;
import dev.qflow.registry.v1.SessionServiceGrpc;
import dev.qflow.registry.v1.SignInRequest;
import dev.qflow.registry.v1.SignInResponse;
import dev.qflow.registry.v1.WorkflowDefinition;
import dev.qflow.registry.v1.WorkflowInput;
import dev.qflow.registry.v1.WorkflowNode;
import dev.qflow.registry.v1.WorkflowOutput;
import dev.qflow.registry.v1.WorkflowServiceGrpc;
import dev.qflow.runner.v1.CreateUploadRequest;
import dev.qflow.runner.v1.DownloadFileRequest;
import dev.qflow.runner.v1.DownloadFileResponse;
import dev.qflow.runner.v1.File;
import dev.qflow.runner.v1.FileServiceGrpc;
import dev.qflow.runner.v1.FinishUploadRequest;
import dev.qflow.runner.v1.UploadServiceGrpc;
import dev.qflow.runner.v1.WriteUploadRequest;
import dev.qflow.runner.v1.WriteUploadResponse;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;

/**
 * The whole trip: sign in, create two nodes from source and a workflow of them, start it, watch it over a cut, read
 * what it gives, bring a file and fetch it, be refused.
 *
 * <pre>
 * QFLOW_REGISTRY=127.0.0.1:7101 QFLOW_ORCHESTRATOR=127.0.0.1:7102 QFLOW_RUNNER=127.0.0.1:7103 \
 * QFLOW_EMAIL=owner@localhost QFLOW_PASSWORD=… \
 * java -cp target/classes:$(cat target/classpath) example/Trip.java
 * </pre>
 */
public final class Trip {
  private static final String NEXT = "def next_number(n: int) -> int:\n    return n + 1\n";
  private static final String TELL =
      """
      import time


      def tell(name: str, n: int) -> str:
          time.sleep(2)  # time to watch
          return f"{name}: {n}"
      """;
  private static final String NAME = "Zoë · 東京 🚲";
  private static final long NUMBER = (1L << 53) + 1; // no double holds it
  private static final int CHUNK_BYTES = 64 * 1024;
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  public static void main(String[] arguments) throws Exception {
    try (Client client = new Client(Options.fromEnvironment())) {
      SignInResponse session =
          SessionServiceGrpc.newBlockingStub(client.registry())
              .signIn(
                  SignInRequest.newBuilder()
                      .setEmail(System.getenv("QFLOW_EMAIL"))
                      .setPassword(System.getenv("QFLOW_PASSWORD"))
                      .build());
      client.setToken(session.getToken());
      OUT.println("signed in: " + session.getCaller().getEmail());
      String execution = start(client, createWorkflow(client));
      watch(client, execution);
      files(client);
      refused(client);
    }
  }

  private static String createNode(Client client, String place, String code) {
    return NodeServiceGrpc.newBlockingStub(client.registry())
        .createNode(
            CreateNodeRequest.newBuilder()
                .setName("trip: " + place)
                .setCode(code)
                .setRequestId(newId())
                .build())
        .getNode()
        .getId();
  }

  private static String createWorkflow(Client client) {
    WorkflowDefinition definition =
        WorkflowDefinition.newBuilder()
            .addNodes(WorkflowNode.newBuilder().setId("next").setNodeId(createNode(client, "next", NEXT)))
            .addNodes(WorkflowNode.newBuilder().setId("tell").setNodeId(createNode(client, "tell", TELL)))
            .addInputs(WorkflowInput.newBuilder().setName("name"))
            .addInputs(WorkflowInput.newBuilder().setName("n"))
            .addConnections(edge("", "n", "next", "n"))
            .addConnections(edge("", "name", "tell", "name"))
            .addConnections(edge("next", "result", "tell", "n"))
            .addOutputs(output("number", "next"))
            .addOutputs(output("text", "tell"))
            .build();
    return WorkflowServiceGrpc.newBlockingStub(client.registry())
        .createWorkflow(
            CreateWorkflowRequest.newBuilder()
                .setName("trip")
                .setActivate(true)
                .setDefinition(definition)
                .setRequestId(newId())
                .build())
        .getWorkflow()
        .getId();
  }

  private static Connection edge(String node, String output, String target, String input) {
    return Connection.newBuilder()
        .setSourceNode(node)
        .setSourceOutput(output)
        .setTargetNode(target)
        .setTargetInput(input)
        .build();
  }

  private static WorkflowOutput output(String name, String node) {
    return WorkflowOutput.newBuilder().setName(name).setSourceNode(node).setSourceOutput("result").build();
  }

  /** Asks twice, as one does whose first answer was lost: there is one run. */
  private static String start(Client client, String workflow) {
    JsonObject inputs = new JsonObject();
    inputs.addProperty("name", NAME);
    inputs.addProperty("n", NUMBER);
    StartExecutionRequest request =
        StartExecutionRequest.newBuilder()
            .setWorkflowId(workflow)
            .setInputJson(inputs.toString())
            .setRequestId(newId())
            .build();
    var stub = ExecutionServiceGrpc.newBlockingStub(client.orchestrator());
    StartExecutionResponse first = stub.startExecution(request);
    StartExecutionResponse again = stub.startExecution(request);
    String id = first.getExecution().getId();
    check(id.equals(again.getExecution().getId()) && again.getExisting(), "two runs of one request");
    OUT.println("started once: " + id);
    return id;
  }

  /** Leaves after the first state and goes on from its revision, as after a restart of its own. */
  private static void watch(Client client, String execution) {
    long seen = 0;
    try (Watch steps = client.watch(execution, 0)) {
      while (seen == 0) {
        seen = steps.next().getRevision();
      }
    }
    OUT.println("watching again after revision " + seen);
    try (Watch steps = client.watch(execution, seen)) {
      steps.forEachRemaining(step -> {});
    }
    GetExecutionRequest request = GetExecutionRequest.newBuilder().setExecutionId(execution).build();
    var stub = ExecutionServiceGrpc.newBlockingStub(client.orchestrator());
    String output = stub.getExecution(request).getExecution().getOutputJson();
    JsonObject told = JsonParser.parseString(output).getAsJsonObject();
    long number = told.get("number").getAsBigInteger().longValueExact();
    String text = told.get("text").getAsString();
    OUT.println("number: " + number);
    OUT.println("text: " + text);
    check(number == NUMBER + 1 && text.equals(NAME + ": " + (NUMBER + 1)), "values have changed on the way");
  }

  private static void files(Client client) throws Exception {
    byte[] content = "Grüße\n".repeat(30_000).getBytes(StandardCharsets.UTF_8);
    var uploads = UploadServiceGrpc.newBlockingStub(client.runner());
    String id =
        uploads
            .createUpload(
                CreateUploadRequest.newBuilder()
                    .setFilename("grüße.txt")
                    .setSizeBytes(content.length)
                    .setRequestId(newId())
                    .build())
            .getUpload()
            .getId();
    write(client, id, content);
    String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
    File file =
        uploads
            .finishUpload(
                FinishUploadRequest.newBuilder()
                    .setUploadId(id)
                    .setSha256(digest)
                    .setRequestId(newId())
                    .build())
            .getFile();
    ByteArrayOutputStream back = new ByteArrayOutputStream();
    Iterator<DownloadFileResponse> parts =
        FileServiceGrpc.newBlockingStub(client.runner())
            .downloadFile(DownloadFileRequest.newBuilder().setFileId(file.getId()).build());
    while (parts.hasNext()) {
      parts.next().getChunk().writeTo(back);
    }
    check(Arrays.equals(content, back.toByteArray()), "the file is another");
    OUT.println("file: " + file.getFilename() + " " + back.size() + " bytes");
  }

  private static void write(Client client, String id, byte[] content) {
    CompletableFuture<WriteUploadResponse> written = new CompletableFuture<>();
    StreamObserver<WriteUploadRequest> parts =
        UploadServiceGrpc.newStub(client.runner())
            .writeUpload(
                new StreamObserver<>() {
                  @Override
                  public void onNext(WriteUploadResponse answer) {
                    written.complete(answer);
                  }

                  @Override
                  public void onError(Throwable error) {
                    written.completeExceptionally(error);
                  }

                  @Override
                  public void onCompleted() {}
                });
    for (int at = 0; at < content.length; at += CHUNK_BYTES) {
      int size = Math.min(CHUNK_BYTES, content.length - at);
      parts.onNext(
          WriteUploadRequest.newBuilder()
              .setUploadId(at == 0 ? id : "")
              .setChunk(ByteString.copyFrom(content, at, size))
              .build());
    }
    parts.onCompleted();
    check(written.join().getReceivedBytes() == content.length, "bytes are missing");
  }

  private static void refused(Client client) {
    try {
      ExecutionServiceGrpc.newBlockingStub(client.orchestrator())
          .startExecution(
              StartExecutionRequest.newBuilder().setWorkflowId("no id").setPriority(101).build());
    } catch (StatusRuntimeException error) {
      Refusal refusal = Refusal.of(error);
      OUT.println("refused: " + refusal.code() + " " + refusal.reason());
      refusal.fields().forEach(each -> OUT.println("  " + each.field() + ": " + each.description()));
      return;
    }
    throw new IllegalStateException("it was not refused");
  }

  private static String newId() {
    return UUID.randomUUID().toString();
  }

  private static void check(boolean holds, String otherwise) {
    if (!holds) {
      throw new IllegalStateException(otherwise);
    }
  }
}
