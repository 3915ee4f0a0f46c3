package sidecar

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

func TestClientOptions(t *testing.T) {
	for name, options := range map[string][]gemma.Option{
		"base URL":      {gemma.WithBaseURL("http://10.0.0.1:20200")},
		"default again": {gemma.WithBaseURL(gemma.DefaultBaseURL + "0")},
		"same endpoint": {gemma.WithEndpoints(gemma.DefaultBaseURL)},
		"endpoint":      {gemma.WithEndpoints("http://10.0.0.1:20200")},
		"endpoints":     {gemma.WithEndpoints(gemma.DefaultBaseURL, "http://10.0.0.1:20200")},
		"socket":        {gemma.WithUnixSocket("/run/gemma.sock")},
		"both":          {gemma.WithEndpoints("unix:/run/gemma.sock"), gemma.WithRetries(1)},
		"a mistake":     {gemma.WithRetries(-1)},
	} {
		// Python is not even looked for.
		_, err := Start(context.Background(), Config{Python: "/no/such/python", ClientOptions: options})
		if err == nil || !strings.Contains(err.Error(), "Config.ClientOptions") {
			t.Errorf("%s: %v", name, err)
		}
	}
	harmless := []gemma.Option{gemma.WithAPIKey("k"), gemma.WithRetries(5), gemma.WithLogger(slog.Default()),
		gemma.WithHTTPClient(&http.Client{}), gemma.WithBaseURL(""), gemma.WithEndpoints()}
	for _, options := range [][]gemma.Option{nil, harmless} {
		if err := checkOptions(options); err != nil {
			t.Error(err)
		}
	}
}
