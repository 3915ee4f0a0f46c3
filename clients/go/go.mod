module github.com/gemma-server/gemma-server/clients/go

go 1.23
