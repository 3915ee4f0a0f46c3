// Package documented tests that the API explains itself.
package documented

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/gemma-server/gemma-server/clients/go"

// Whoever looks a name up finds a comment, and code that go test has run: each
// function, type and method has an Example of its own, each constant and
// variable is used in some Example.
func TestEveryNameIsDocumentedAndShown(t *testing.T) {
	for _, folder := range []string{"", "frames", "sidecar", "gemmatest"} {
		t.Run("package "+folder, func(t *testing.T) {
			pkg, examples := read(t, folder)
			checkDoc(t, "the package", pkg.Doc)
			checkValues(t, examples, pkg.Consts, pkg.Vars)
			checkFuncs(t, "", pkg.Funcs)
			for _, typ := range pkg.Types {
				checkDoc(t, typ.Name, typ.Doc)
				if !shows(typ.Examples, "") {
					t.Errorf("%s: no Example with an output is named after it", typ.Name)
				}
				checkValues(t, examples, typ.Consts, typ.Vars)
				checkFuncs(t, "", typ.Funcs)
				checkFuncs(t, typ.Name+".", typ.Methods)
			}
		})
	}
}

// read takes all files, for whatever system they are.
func read(t *testing.T, folder string) (*doc.Package, []*doc.Example) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("..", "..", folder, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("files %q, %v", paths, err)
	}
	var files, tests []*ast.File
	fset := token.NewFileSet()
	for _, path := range paths {
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		if strings.HasSuffix(path, "_test.go") {
			tests = append(tests, file)
		}
	}
	pkg, err := doc.NewFromFiles(fset, files, strings.TrimSuffix(module+"/"+folder, "/"))
	if err != nil {
		t.Fatal(err)
	}
	return pkg, doc.Examples(tests...)
}

func checkDoc(t *testing.T, name, comment string) {
	t.Helper()
	if strings.TrimSpace(comment) == "" {
		t.Errorf("%s: no doc comment", name)
	}
}

// checkFuncs leaves out the methods of an error, which its type's Example shows.
func checkFuncs(t *testing.T, receiver string, funcs []*doc.Func) {
	t.Helper()
	for _, f := range funcs {
		checkDoc(t, receiver+f.Name, f.Doc)
		switch f.Name {
		case "Error", "Is", "Unwrap", "String":
			if receiver != "" {
				continue
			}
		}
		if !shows(f.Examples, f.Name) {
			t.Errorf("%s%s: no Example with an output is named after it and uses it", receiver, f.Name)
		}
	}
}

// checkValues is content with a comment on the group that a value is in.
func checkValues(t *testing.T, examples []*doc.Example, kinds ...[]*doc.Value) {
	t.Helper()
	for _, groups := range kinds {
		for _, group := range groups {
			checkDoc(t, strings.Join(group.Names, ", "), group.Doc)
			for _, name := range group.Names {
				if ast.IsExported(name) && !shows(examples, name) {
					t.Errorf("%s: in no Example with an output", name)
				}
			}
		}
	}
}

// shows reports whether one of the examples is run, which takes an output, and
// uses the name, unless that is empty.
func shows(examples []*doc.Example, name string) bool {
	for _, example := range examples {
		if example.Output == "" && !example.EmptyOutput {
			continue
		}
		found := name == ""
		ast.Inspect(example.Code, func(node ast.Node) bool {
			if use, ok := node.(*ast.SelectorExpr); ok && use.Sel.Name == name {
				found = true
			}
			return !found
		})
		if found {
			return true
		}
	}
	return false
}
