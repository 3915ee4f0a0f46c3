package gemma_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"

	gemma "github.com/gemma-server/gemma-server/clients/go"
	"github.com/gemma-server/gemma-server/clients/go/gemmatest"
)

// Options may depend on what a program is for.
func ExampleOption() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Error(429, gemma.CodeOverloaded)))
	defer srv.Close()

	options := []gemma.Option{gemma.WithBaseURL(srv.URL)}
	if somebodyWaits := true; somebodyWaits {
		options = append(options, gemma.WithRetries(0))
	}
	_, err := gemma.New(options...).Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	fmt.Println(errors.Is(err, gemma.ErrOverloaded), len(srv.Requests()))
	// Output: true 1
}

func ExampleWithBaseURL() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()

	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	address := flags.String("url", gemma.DefaultBaseURL, "where gemma-server listens")
	flags.Parse([]string{"-url", srv.URL}) // os.Args[1:] in a program

	client := gemma.New(gemma.WithBaseURL(*address))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hello
}

func ExampleWithUnixSocket() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()
	socket, closeSocket := socketTo(srv) // as gemma-server serve --uds makes it
	defer closeSocket()

	client := gemma.New(gemma.WithUnixSocket(socket))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hello
}

// socketTo leads from a Unix socket to the fake, which has none itself.
func socketTo(srv *gemmatest.Server) (path string, closeSocket func()) {
	dir, err := os.MkdirTemp("", "gemma-")
	if err != nil {
		log.Fatal(err)
	}
	path = filepath.Join(dir, "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	target, err := url.Parse(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(listener, httputil.NewSingleHostReverseProxy(target))
	return path, func() {
		listener.Close()
		os.RemoveAll(dir)
	}
}

func ExampleWithEndpoints() {
	one, two := gemmatest.NewServer(nil), gemmatest.NewServer(nil)
	defer one.Close()
	defer two.Close()

	client := gemma.New(gemma.WithEndpoints(one.URL, two.URL))
	for range 4 {
		if _, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"}); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(len(one.Requests()), len(two.Requests()))
	// Output: 2 2
}

// Without this option no proxy is used.
func ExampleWithHTTPClient() {
	srv := gemmatest.NewServer(nil)
	defer srv.Close()
	proxy, err := url.Parse(srv.URL) // the fake stands in for a proxy, too
	if err != nil {
		log.Fatal(err)
	}

	through := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	client := gemma.New(gemma.WithBaseURL("http://gemma.example"), gemma.WithHTTPClient(through))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text)
	// Output: Hello
}

func ExampleWithAPIKey() {
	srv := gemmatest.NewServer(nil, gemmatest.WithAPIKey("sesame"))
	defer srv.Close()

	for _, key := range []string{"sesame", "pepper"} {
		client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithAPIKey(key))
		_, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
		var api *gemma.APIError
		fmt.Println(errors.As(err, &api) && api.Code == gemma.CodeUnauthorized)
	}
	// Output:
	// false
	// true
}

func ExampleWithRetries() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(
		gemmatest.Error(503, gemma.CodeLoading), gemmatest.Text("Hello.")))
	defer srv.Close()

	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithRetries(1))
	resp, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"})
	fmt.Println(resp.Text, err)
	// Output: Hello. <nil>
}

func ExampleWithLogger() {
	srv := gemmatest.NewServer(nil, gemmatest.WithReplies(gemmatest.Error(429, gemma.CodeOverloaded)))
	defer srv.Close()

	// What differs from run to run is left out here.
	same := func(_ []string, attr slog.Attr) slog.Attr {
		switch attr.Key {
		case slog.TimeKey, "endpoint", "wait", "error":
			return slog.Attr{}
		}
		return attr
	}
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: same}))
	client := gemma.New(gemma.WithBaseURL(srv.URL), gemma.WithLogger(logger))
	if _, err := client.Generate(context.Background(), gemma.Request{Prompt: "Hi"}); err != nil {
		log.Fatal(err)
	}
	// Output: level=INFO msg="gemma: trying again" path=/prompt attempt=1
}
